"""A text is encoded once for all the items that need it, and nothing else of them changes."""

from dataclasses import fields, replace

import pytest
import torch
from families.cases import CASES
from families.running import assemble_case, batch_for, context_for

from difftool.pipeline.encodings import Encodings
from difftool.stages.text_encoding import encoding_key, texts_to_encode

NAMES = [case.name for case in CASES]


def keys(assembled, batches):
    config = assembled.config
    return [encoding_key(config, batch, text) for batch in batches for text in texts_to_encode(config, batch)]


@pytest.mark.parametrize("name", NAMES)
def test_items_of_one_prompt_share_its_encoding_and_make_the_same_pictures(name):
    assembled = assemble_case(name)
    steps = assembled.case.fewest_steps
    batches = [batch_for(assembled, seeds=[seed], num_inference_steps=steps) for seed in (7, 8)]
    alone = [assembled.pipeline(batch, context_for(assembled)) for batch in batches]
    encodings = Encodings(keys(assembled, batches))
    ctx = replace(context_for(assembled), encodings=encodings)
    together, reused = [], []
    for batch in batches:
        encodings.start_item()
        together.append(assembled.pipeline(batch, ctx))
        reused.append(encodings.reused)
    assert reused == [[], list(texts_to_encode(assembled.config, batches[0]))]
    assert all(a is b for a, b in zip(*(made.prompt_embeds for made in together), strict=True))
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(alone, together, strict=True))
    assert len(encodings) == 0  # nobody asks again


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "changes",
    [{"prompt": ["a blue star"]}, {"max_sequence_length": 4}, {"extra": {"prompt_2": "another"}}],
    ids=["prompt", "length", "extra"],
)
def test_whatever_else_goes_into_an_encoding_makes_it_another(name, changes):
    assembled = assemble_case(name)
    batch = batch_for(assembled)
    assert encoding_key(assembled.config, batch, "prompt") != encoding_key(
        assembled.config, replace(batch, **changes), "prompt"
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["prompt", "negative_prompt"])
def test_an_encoding_reads_only_what_its_key_holds(name, text):
    assembled = assemble_case(name)
    batch = batch_for(assembled, negative_prompt=["grey"])
    allowed = {text, *assembled.config.encoding_inputs}

    class Watched:
        def __getattr__(self, field):
            assert field in allowed or field not in {f.name for f in fields(batch)}, f"reads {field}"
            return getattr(batch, field)

    negative = text == "negative_prompt"
    device = torch.device("cpu")
    with torch.no_grad():
        assert assembled.config.encode_prompt(assembled.components, Watched(), device, negative=negative)


def test_only_what_is_asked_for_again_is_kept_and_never_more_than_the_limit():
    wanted = [("prompt", name) for name in "abcabc"]
    encodings = Encodings([*wanted, ("prompt", "once")], limit=2)
    made = []
    for key in [("prompt", "once"), *wanted]:
        encodings.get(key, lambda key=key: made.append(key[1]) or [torch.zeros(1)])
        assert len(encodings) <= 2
    assert made == ["once", "a", "b", "c", "a"]  # a was the oldest when c came

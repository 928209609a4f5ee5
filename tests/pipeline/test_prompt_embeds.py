"""Text encodings that lie on the disk make the same pictures as the encoders that made them, which are not read."""

import json
import os
from dataclasses import replace

import pytest
import torch
from families.cases import CASES
from families.running import assemble_case, batch_for, context_for
from tiny import difftool

from difftool.components.loaded import Components
from difftool.pipeline.encodings import Encodings
from difftool.pipeline.prompt_embeds import PromptEmbeds, files_digest
from difftool.stages.text_encoding import encoding_key, texts_to_encode

CPU = torch.device("cpu")
KEY = ("prompt", "a red circle")
RUN = (
    "generate",
    "builtin:shapes-image",
    "-p",
    "a red circle",
    "--num-inference-steps",
    2,
    "--device",
    "cpu",
    "--json",
)


def encodings(assembled, batch, shelf):
    config = assembled.config
    return Encodings([encoding_key(config, batch, text) for text in texts_to_encode(config, batch)], shelf=shelf)


def without_encoders(assembled):
    """The same components, whose encoders nobody may read."""
    names = assembled.config.roles["text_encoding"]
    modules = {**assembled.components.modules, **dict.fromkeys(names)}
    refused = {name: lambda: pytest.fail("an encoder is read") for name in names}
    return Components(modules, assembled.components.holder, refused)


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_a_later_run_makes_the_same_picture_and_reads_no_encoder(name, tmp_path):
    assembled = assemble_case(name)
    batch = batch_for(assembled, num_inference_steps=assembled.case.fewest_steps)
    first = encodings(assembled, batch, PromptEmbeds(tmp_path, {}, CPU))
    assert not first.complete
    made = assembled.pipeline(batch, replace(context_for(assembled), encodings=first))
    later = encodings(assembled, batch, PromptEmbeds(tmp_path, {}, CPU))
    assert later.complete
    ctx = replace(context_for(assembled), encodings=later, components=without_encoders(assembled))
    again = assembled.pipeline(batch, ctx)
    assert later.reused == list(texts_to_encode(assembled.config, batch))
    assert torch.equal(made.pixels, again.pixels)


def test_what_is_read_is_what_was_written_in_every_shape(tmp_path):
    embeds = [
        torch.randn(2, 3, dtype=torch.bfloat16),
        None,
        [torch.ones(1), torch.ones(2)],
        torch.tensor([True, False]),
    ]
    shelf = PromptEmbeds(tmp_path, {}, CPU)
    shelf.write(KEY, embeds)
    whole, nothing, ragged, mask = shelf.read(KEY)
    assert torch.equal(whole, embeds[0]) and nothing is None and torch.equal(mask, embeds[3])
    assert [part.shape[0] for part in ragged] == [1, 2]


def test_other_conditions_and_other_texts_have_files_of_their_own(tmp_path):
    PromptEmbeds(tmp_path, {"threads": 1}, CPU).write(KEY, [torch.ones(1)])
    other = PromptEmbeds(tmp_path, {"threads": 2}, CPU)
    assert KEY not in other and other.read(KEY) is None
    assert ("negative_prompt", KEY[1]) not in PromptEmbeds(tmp_path, {"threads": 1}, CPU)


@pytest.mark.parametrize("damage", [b"", b"\x00" * 64], ids=["empty", "zeros"])
def test_a_damaged_file_is_made_again(damage, tmp_path):
    shelf = PromptEmbeds(tmp_path, {}, CPU)
    shelf.write(KEY, [torch.ones(1)])
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(damage)
    kept = Encodings([KEY], shelf=shelf)
    assert kept.get(KEY, lambda: [torch.zeros(1)])[0].item() == 0 and kept.reused == []
    assert shelf.read(KEY)[0].item() == 0


def test_encoders_of_other_contents_have_another_digest_and_contents_are_read_once(tmp_path):
    encoder, kept = tmp_path / "text_encoder", tmp_path / "kept"
    encoder.mkdir()
    weights = encoder / "model.safetensors"
    weights.write_bytes(b"one")
    before, status = files_digest([encoder], kept), weights.stat()
    weights.write_bytes(b"two")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files_digest([encoder], kept) == before  # neither its size nor its time says that it changed
    os.utime(weights, ns=(0, 0))
    assert files_digest([encoder], kept) != before
    assert files_digest([encoder], tmp_path / "another") == files_digest([encoder], kept)


@pytest.mark.slow
def test_a_second_command_reads_no_encoder_until_a_new_prompt_comes(tmp_path):
    def loaded(*arguments):
        done = difftool(*RUN, *arguments, "--prompt-embeds-dir", "embeds", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        events = [json.loads(line) for line in done.stdout.splitlines()]
        return {event["name"] for event in events if event["event"] == "component_loaded"}

    first = loaded("-o", "one.png")
    assert loaded("-o", "two.png") == {"transformer", "vae"} < first
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert loaded("-p", "a blue star", "-o", "more/") == first

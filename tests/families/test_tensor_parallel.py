"""Ranks that have a part of each layer make the latents of one that has them whole: every family, alone and with
Ulysses.
"""

import copy
from dataclasses import replace

import pytest
from families.cases import CASES
from families.running import assemble_case, split_along
from pytest import mark, param

from difftool.parallel.mesh import Line
from difftool.parallel.tensor import cut_model

LIMIT = 1e-5  # of the largest latent, after the full schedule in fp32: rounding, as sums are made of two halves
TP, TP_ULYSSES = {"tp": 2}, {"ulysses": 2, "tp": 2}
# sums over the ranks in one forward: of the tiny checkpoint's layers cut by rows, and of its norms across heads
SUMS = {
    "flux1": 2 * 4 + 2 * 1,  # double blocks: attention and feed-forward of both streams; single blocks: all in one
    "flux2": 2 * 4 + 2 * 1,
    "hunyuanvideo": 2 * 4 + 2 * 1,
    "ltx": 2 * (3 + 4),  # two attentions and a feed-forward; query and key of both
    "qwenimage": 2 * 4,
    "sd3": 5 + 4 + 2,  # the first block has a second attention, the last one drops the text
    "wan": 2 * (3 + 4),
    "zimage": 4 * 2,  # two refiners are blocks too
}
PICTURE_KEYS = ("wan21-i2v", "wan21-flf2v")  # a norm more in each block
# and modulations put together: of both streams of a double block, and of a single one
GATHERS = {"flux1": 2 * 2 + 2 * 1, "hunyuanvideo": 2 * 2 + 2 * 1, "qwenimage": 2 * 2, "sd3": 3 * 2}


def every_case():
    """The first case of a family stands for it; all others are slow."""
    seen = set()
    for case in split_along("tp"):
        for degrees in (TP, TP_ULYSSES):
            first = (case.family, len(degrees)) not in seen
            seen.add((case.family, len(degrees)))
            yield param(case, degrees, id=f"{case.name}-{'-'.join(degrees)}", marks=() if first else mark.slow)


@pytest.mark.parametrize(("case", "degrees"), list(every_case()))
def test_parts_of_layers_make_the_latents_of_whole_ones(ranks, saved, case, degrees):
    answers = run(ranks, saved, case.name, degrees, "4 steps")
    sums = SUMS[case.family] + 2 * (case.name in PICTURE_KEYS)
    expected = {"all_reduce": sums, **({"all_gather": GATHERS[case.family]} if case.family in GATHERS else {})}
    for answer in answers:
        assert answer["calls"] == {name: answer["forwards"] * count for name, count in expected.items()}
    check_sizes(answers)


@pytest.mark.parametrize("request_name", ["uneven", "two prompts", "guided"])
def test_tokens_and_layers_may_be_split_at_once(ranks, saved, request_name):
    run(ranks, saved, "qwenimage", TP_ULYSSES, request_name)


def test_four_ranks_have_a_head_each(ranks, saved):
    answers = run(ranks, saved, "wan21-t2v", {"tp": 4}, "4 steps")
    assert {own / whole for own, whole in cut_sizes(answers[0])} == {0.25}


def run(ranks, saved, name, degrees, request):
    """What every rank measured; their latents are those of one rank."""
    world = 4 if degrees == TP_ULYSSES else degrees["tp"]
    folder = str(saved(name))
    answers = ranks.run(
        "families.tensors:compare", world=world, case=name, folder=folder, degrees=degrees, request=request
    )
    for answer in answers:
        assert answer["difference"] <= LIMIT * answer["scale"], answer
        if request != "two prompts":  # whose unlike lengths need a mask
            assert answer["sent"] == answer["predicted"]
    return answers


def cut_sizes(answer):
    return [pair for pair in answer["sizes"].values() if pair[0] != pair[1]]


def check_sizes(answers):
    """Every matrix of the blocks' attentions and feed-forwards is halved; Z-Image's have 85 features, 43 and 42."""
    for answer in answers:
        dealt = {name: pair for name, pair in answer["sizes"].items() if is_dealt(name)}
        assert {name for name, (own, whole) in dealt.items() if abs(own / whole - 0.5) > 0.01} == set()
        assert dealt
    for first, second in zip(*(cut_sizes(answer) for answer in answers[:2]), strict=True):
        assert first[0] + second[0] == first[1]


def is_dealt(name):
    """Whether it is a matrix of an attention or a feed-forward of a block, and not of what comes before the blocks."""
    kinds = ("attn", "attention.", "ff", "mlp", "feed_forward", "proj_out.weight")
    inside = any(part.isdigit() for part in name.split(".")) and "embedder" not in name
    return (
        inside
        and not any(word in name for word in ("norm", "_mod.", "adaLN"))
        and name.endswith("weight")
        and any(kind in name for kind in kinds)
    )


@pytest.mark.parametrize("name", ["flux1-dev", "flux2-dev", "qwenimage"])
def test_a_plan_names_the_layers_that_diffusers_own_plan_names(name):
    assembled = assemble_case(name)
    transformer, plan = assembled.components.transformer, assembled.config.tensor
    ours = {layer if isinstance(layer, str) else layer.path for layer in (*plan.columns, *plan.rows)}
    assert ours == set(type(transformer)._tp_plan)


@pytest.mark.parametrize("family", ["flux1", "hunyuanvideo", "qwenimage", "sd3"])
def test_modulations_are_a_third_of_a_block_and_are_dealt_out_too(family):
    assembled = assemble_case(next(case.name for case in CASES if case.family == family))
    first = assembled.components.transformer.transformer_blocks[0]
    shares = cut_model(copy.deepcopy(first).to("meta"), below(assembled.config.tensor), Line((0, 1)), key="", name="")
    own = sum(cut_size(shares, name) for name in shares.whole)
    assert own / sum(value.numel() for value in shares.whole.values()) < 0.51


def below(plan):
    """The plan of one block."""
    inside = "transformer_blocks.*."
    return replace(
        plan,
        heads={path.removeprefix(inside): heads for path, heads in plan.heads.items() if path.startswith(inside)},
        **{
            key: tuple(path.removeprefix(inside) for path in getattr(plan, key) if str(path).startswith(inside))
            for key in ("columns", "rows", "gathered")
        },
    )


def cut_size(shares, name):
    whole, cut = shares.whole[name], shares.cuts.get(name)
    return whole.numel() if cut is None else whole.numel() // whole.shape[cut.dim] * length(cut)


def length(cut):
    return sum(stop - start for start, stop in cut.ranges)

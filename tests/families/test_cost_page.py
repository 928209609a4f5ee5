"""Every number of docs/parallel-cost.md comes out of the code: the case worked by hand, and the published points."""

import math
from pathlib import Path

import pytest
from families.predicted import cost_of

from difftool.anatomy import Request
from difftool.families.index import all_families
from difftool.planning.links import BETWEEN, RATES, WITHIN
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.scaling import waiting_seconds
from difftool.recipe.load import load_recipe
from difftool.recipe.overrides import Override

PAGE = (Path(__file__).parents[2] / "docs" / "parallel-cost.md").read_text()
FLUX, HUNYUAN = "black-forest-labs/FLUX.1-dev", "hunyuanvideo-community/HunyuanVideo"
WAN = "Wan-AI/Wan2.1-T2V-14B-Diffusers"
# published: (model, degrees, steps of a time, seconds on one card, seconds on these, who)
POINTS = [
    (FLUX, {"ulysses": 2}, 28, 4.30, 2.68, "xDiT"),
    (FLUX, {"ring": 2}, 28, 4.30, 2.60, "xDiT"),
    (FLUX, {"ulysses": 4}, 28, 4.30, 1.63, "xDiT"),
    (FLUX, {"ulysses": 2, "ring": 2}, 28, 4.30, 1.80, "xDiT"),
    (FLUX, {"ring": 4}, 28, 4.30, 1.98, "xDiT"),
    (HUNYUAN, {"ulysses": 2}, 50, 1904, 925, "xDiT"),
    (HUNYUAN, {"ulysses": 4}, 50, 1904, 514, "xDiT"),
    (HUNYUAN, {"ulysses": 8}, 50, 1904, 338, "xDiT"),
    (WAN, {"cfg": 2, "ulysses": 4}, 1, 5.18, 0.75, "LightX2V"),
    (WAN, {"cfg": 2, "ulysses": 4}, 1, 6.13, 1.19, "SGLang"),
    (WAN, {"cfg": 2, "ulysses": 4}, 1, 8.93, 2.70, "xDiT"),
    (WAN, {"cfg": 2, "ulysses": 4}, 1, 7.35, 2.94, "FastVideo"),
]


def planned(model, degrees):
    asked = {"sampling.prompt": "x", "stages.denoising.precision": "bf16", "launch.device": "cuda"}
    asked |= {f"parallel.{axis}": degree for axis, degree in degrees.items()}
    asked["parallel.num_gpus"] = math.prod(degrees.values())
    overrides = [Override(key, value, "test") for key, value in asked.items()]
    return make_plan(load_recipe(model, overrides), run=RunOptions(preview=True)).prediction


def test_the_case_worked_by_hand_is_what_the_plan_says():
    tokens, width, layers, element, ranks = 4096 + 512, 24 * 128, 19 + 38, 2, 4
    mine = tokens // ranks
    there = (ranks - 1) * mine * 3 * width // ranks * element
    back = (tokens - mine) * width // ranks * element
    gathered = (ranks - 1) * 4096 // ranks * width * element
    found = planned(FLUX, {"ulysses": 4})
    first = {sent.collective: sent for sent in found.ranks[0].step}
    assert (first["all_to_all"].calls, first["all_to_all"].bytes) == (2 * layers, layers * (there + back))
    assert (first["all_gather"].calls, first["all_gather"].bytes) == (1, gathered)
    weights = 11_901_408_320
    assert found.ranks[0].weights["transformer"] == weights * element
    one, link = found.flops / RATES["bf16"], WITHIN["NVLink"]
    waiting = (layers * (there + back) + gathered) / link.bandwidth + (2 * layers + 1) * link.seconds
    (scaled,) = [each for each in found.scaling if each.link == "NVLink"]
    assert scaled.waiting_s == pytest.approx(waiting)
    assert scaled.speedup == pytest.approx(one / (one / ranks + waiting))
    for text in (
        f"4096 + 512 = {tokens} tokens, {mine} a rank",
        f"3 x {mine} x 3 x {width // ranks} x 2 = {there:,} bytes",
        f"({tokens} - {mine}) x {width // ranks} x 2 = {back:,} bytes",
        f"{layers} x ({there:,} + {back:,}) = {layers * (there + back):,} bytes in {2 * layers} calls",
        f"3 x 1024 x {width} x 2 = {gathered:,} bytes",
        f"{weights:,} x 2 bytes = {weights * element / 2**30:.2f} GiB",
        f"{found.flops / 1e12:.2f} TFLOP",
        f"{1e3 * one:.1f} ms on one card, {1e3 * one / ranks:.1f} ms on each of four",
        f"{1e3 * waiting:.1f} ms",
        f"{scaled.speedup:.2f} times one card, {100 * scaled.efficiency:.0f} %",
    ):
        assert text in PAGE, text


def attention_share(model):
    """Of a forward's FLOPs: what a ring can hide behind."""
    facts, checkpoint = next((f, c) for f in all_families() for c in f.checkpoints if c.hub_id == model)
    values = {**facts.sampling, **checkpoint.sampling, "extra": {}}
    anatomy = cost_of(facts).anatomy(checkpoint.configs, Request(values))
    return anatomy.across_flops() / anatomy.flops()


def predicted(model, degrees, steps, one):
    """Seconds on these cards, by what one card was published to take: none of it is taken not to divide."""
    found, links = planned(model, degrees), dict.fromkeys((*degrees, "sequence"), WITHIN["NVLink"])
    own = one / steps / math.prod(degrees.values())
    attending = own * attention_share(model)
    waits = [waiting_seconds(rank.step, links, computing=own, attending=attending) for rank in found.ranks]
    return steps * (own + max(waits))


def test_the_table_of_published_points_is_what_the_code_predicts():
    for model, degrees, steps, one, many, who in POINTS:
        layout = " x ".join(f"{axis} {degree}" for axis, degree in degrees.items())
        seconds = predicted(model, degrees, steps, one)
        off = 100 * (seconds / many - 1)
        row = f"| {model.rpartition('/')[2]} | {who} | {layout} | {one:g} | {many:g} | {seconds:.3g} | {off:+.0f} % |"
        assert row in PAGE, row


def test_the_table_of_speeds_is_that_of_the_code():
    between = {f"{name}, between machines": link for name, link in BETWEEN.items()}
    for name, link in {**WITHIN, **between}.items():
        assert f"| {name} | {link.bandwidth / 1e9:g} GB/s | {1e6 * link.seconds:g} µs |" in PAGE
    assert f"{RATES['bf16'] / 1e12:g} TFLOP/s in 16 bits, {RATES['fp32'] / 1e12:g} in fp32" in PAGE

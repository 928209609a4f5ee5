"""Ranks that share a denoiser's weights: which of them, and what they refuse before anything is launched."""

import pytest

from difftool.errors import RecipeError
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe

SHAPES = "builtin:shapes-image"
TWO = {"num_gpus": 2, "hsdp": "all"}
FOUR = {"num_gpus": 4, "dp": 2, "ulysses": 2}
SD3 = "stabilityai/stable-diffusion-3.5-medium"
WHY = "replicas share weights, so their items must run equally many forwards"
OUT = "give it all items alike, or use hsdp=none"


def plan(parallel, *items, model=SHAPES, **sampling):
    prompts = [{"prompt": f"a red circle {i}", **item} for i, item in enumerate(items or [{}])]
    recipe = {"model": model, "parallel": parallel, "sampling": {"prompts": prompts, **sampling}}
    return make_plan(load_recipe(recipe), run=RunOptions())


def problems(*arguments, **values):
    with pytest.raises(RecipeError) as error:
        plan(*arguments, **values)
    return [problem.message for problem in error.value.problems]


REFUSED = [
    ({"hsdp": "all"}, ": one rank has nobody to share weights with; use num_gpus=2 or more, or hsdp=none"),
    ({"num_gpus": 2, "hsdp": 1}, ": one rank has nobody to share weights with; use num_gpus=2 or more, or hsdp=none"),
    ({"num_gpus": 4, "hsdp": 3}, " does not divide num_gpus=4; valid: 2, 4"),
    ({"num_gpus": 2, "tp": 2, "hsdp": 2}, " shards over the ranks that tensor parallel splits; use tp=1 or hsdp=none"),
]


@pytest.mark.parametrize(("parallel", "message"), REFUSED)
def test_ranks_that_cannot_share_weights_are_refused(parallel, message):
    assert f"parallel.hsdp={parallel['hsdp']}{message}" in problems(parallel)


def test_a_pipeline_that_diffusers_runs_has_no_blocks_to_shard():
    message = "parallel.hsdp=all: OvisImagePipeline has no blocks that are known to be sharded; use hsdp=none"
    assert message in problems(TWO, model="AIDC-AI/Ovis-Image-7B")


GUIDED = {"true_cfg_scale": 4.0, "negative_prompt": "a blue star"}
UNLIKE = [
    ({}, {"num_inference_steps": 4}, "sampling.num_inference_steps"),
    ({"scheduler": {"sigmas": [1.0, 0.5]}}, {"num_inference_steps": 2}, "sampling.scheduler"),
    (GUIDED, {"true_cfg_scale": 1.0}, "sampling.true_cfg_scale, or whether there is a negative prompt,"),
]


@pytest.mark.parametrize(("first", "other", "named"), UNLIKE)
def test_items_that_run_other_forwards_are_refused_where_replicas_share_weights(first, other, named):
    said = [f"parallel.hsdp=all: {WHY}, and {named} differs; {OUT}"]
    assert problems(TWO, first, other) == said
    assert problems({**FOUR, "hsdp": "all"}, first, other) == said
    # each replica of two ranks has a copy of its own
    assert len(plan({**FOUR, "hsdp": 2}, first, other).items) == 2


def test_items_may_differ_in_what_no_forward_is_counted_by():
    items = [{"seed": 3, "true_cfg_scale": 2.0}, {"height": 32, "negative_prompt": "a blue star"}]
    made = plan(TWO, *items, true_cfg_scale=4.0, negative_prompt="a red ring")
    assert [item.sampling["height"] for item in made.items] == [64, 32]


def test_sizes_decide_about_forwards_where_times_do():
    timed = {"extra": {"cfg_truncation": 0.5}, "guidance_scale": 4.0, "negative_prompt": "blurry"}
    named = f"parallel.hsdp=all: {WHY}, and sampling.width differs; {OUT}"
    assert named in problems(TWO, {}, {"width": 512}, model="Tongyi-MAI/Z-Image", **timed)


def test_a_branch_that_skips_layers_has_no_rank_of_its_own_among_those_that_share_weights():
    request = {"extra": {"skip_guidance_layers": [7]}, "guidance_scale": 5.0, "negative_prompt": "blurry"}
    fewer = "sampling.extra.skip_guidance_layers has a branch that runs fewer blocks"
    said = problems({"num_gpus": 2, "cfg": 2, "hsdp": "all"}, model=SD3, **request)
    assert f"parallel.hsdp=all: {fewer}; use cfg=1, or hsdp=none" in said
    said = problems({"num_gpus": 4, "cfg": 2, "ulysses": 2, "hsdp": "all"}, model=SD3, **request)
    assert f"parallel.hsdp=all: {fewer}; use cfg=1, or hsdp=2" in said
    for degrees in ({"cfg": 2, "ulysses": 2, "hsdp": 2}, {"cfg": 1, "ulysses": 4, "hsdp": 4}):
        assert plan({"num_gpus": 4, **degrees}, model=SD3, **request).degrees.sharing == degrees["hsdp"]


def test_a_picture_s_recipe_is_that_of_its_replica():
    alone, pair = plan(TWO), plan({**FOUR, "hsdp": 2})
    assert alone.item_recipe(alone.items[0])["parallel"]["hsdp"] == "none"
    assert pair.item_recipe(pair.items[0])["parallel"]["hsdp"] == 2
    shared = plan({**FOUR, "hsdp": "all"})
    assert shared.item_recipe(shared.items[0])["parallel"]["hsdp"] == "all"

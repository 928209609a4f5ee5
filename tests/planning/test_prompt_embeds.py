"""Where encodings are kept from run to run: what it excludes, and when the encoders can wait."""

import pytest

from difftool.errors import RecipeError
from difftool.planning.loading import loading
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe

SHAPES = {"model": "builtin:shapes-image", "sampling": {"prompt": "a red circle", "seed": 7}}
KEPT = {"launch": {"prompt_embeds_dir": "/embeds"}}


def plan(recipe):
    return make_plan(load_recipe({**SHAPES, **recipe}), run=RunOptions())


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        (
            {"parallel": {"num_gpus": 2, "tp": 2}, "stages": {"text_encoding": {"tp": 2}}},
            "ranks that encode a text together must all encode it; use stages.text_encoding.tp=1",
        ),
        (
            {"perf": {"repeats": 3}},
            "with perf.repeats above 1 every sample pays for its encoding; leave one of them out",
        ),
        (
            {"model": {"path": "builtin:shapes-image", "backend": "diffusers"}},
            "a pipeline that diffusers runs by itself encodes every text; leave it out",
        ),
    ],
    ids=["tensor-parallel", "repeats", "diffusers"],
)
def test_what_would_make_it_do_nothing_or_wait_for_ever_is_refused(recipe, problem):
    with pytest.raises(RecipeError) as error:
        plan({**recipe, **KEPT})
    assert [found.message for found in error.value.problems] == [f"launch.prompt_embeds_dir: {problem}"]


@pytest.mark.parametrize(
    ("recipe", "wait"),
    [
        ({}, False),
        (KEPT, True),
        ({**KEPT, "stages": {"text_encoding": {"precision": "bf16"}}}, True),
        ({**KEPT, "model": {"path": "builtin:shapes-image", "lora": ["builtin:outline"]}}, False),
    ],
    ids=["not-asked", "asked", "in-bf16", "with-a-lora"],
)
def test_encoders_wait_where_nothing_changes_them(recipe, wait):
    assert plan(recipe).puts_encoders_off == wait


def test_a_session_loads_again_for_another_folder_and_for_other_loras():
    lora = {"model": {"path": "builtin:shapes-image", "lora": ["builtin:outline"]}}
    other = {"launch": {"prompt_embeds_dir": "/others"}}
    assert loading(plan(KEPT)) != loading(plan(other)) and loading(plan(KEPT)) != loading(plan({**KEPT, **lora}))
    assert loading(plan({})) == loading(plan(lora))

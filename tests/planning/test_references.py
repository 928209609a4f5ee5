"""What the outputs of a run are compared with, decided before it starts."""

import os
from pathlib import Path

import pytest

from difftool.errors import RecipeError
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.plan import Plan
from difftool.recipe.load import load_recipe

PROMPTS = ["a red circle", "a blue star"]
WITHOUT_BF16 = {"tier": "near", "reference": {"without": ["stages.decoding.precision"]}}
BF16 = {"decoding": {"precision": "bf16"}}


def plan(*, model: object = "builtin:shapes-image", sampling: dict[str, object] | None = None, **sections) -> Plan:
    content = {"model": model, "sampling": {"prompt": PROMPTS, "seed": 7, **(sampling or {})}, **sections}
    return make_plan(load_recipe(content), run=RunOptions(output_dir="made"))


def refused(**sections) -> RecipeError:
    with pytest.raises(RecipeError) as raised:
        plan(**sections)
    return raised.value


def key(**sections) -> str:
    return Path(plan(**{"quality": WITHOUT_BF16, "stages": BF16, **sections}).quality.files[0]).parent.name


def test_a_run_without_a_tier_has_no_reference():
    made = plan().quality
    assert (made.tier, made.reference, made.files, made.recipe) == ("none", None, (), None)


def test_the_reference_is_the_same_recipe_without_what_is_named():
    made = plan(quality=WITHOUT_BF16, stages={**BF16, "denoising": {"precision": "bf16"}}, perf={"repeats": 5})
    recipe = made.quality.recipe
    assert made.quality.reference == "the same recipe without stages.decoding.precision"
    assert [recipe["stages"][role]["precision"] for role in ("denoising", "decoding")] == ["bf16", "auto"]
    assert (recipe["quality"]["tier"], recipe["perf"]["repeats"]) == ("none", 1)
    assert recipe["sampling"] == made.recipe["sampling"]


def test_its_files_lie_beside_the_records_one_for_each_item():
    folders = {str(Path(file).parent.parent) for file in plan(quality=WITHOUT_BF16, stages=BF16).quality.files}
    assert folders == {os.path.abspath("made/.difftool/references")}
    assert [Path(file).name for file in plan(quality=WITHOUT_BF16).quality.files] == ["0.npz", "1.npz"]


def test_a_section_may_be_left_out_whole():
    made = plan(quality={"tier": "lossy", "reference": {"without": ["stages"]}}, stages=BF16)
    assert made.quality.recipe["stages"] == plan().recipe["stages"]


def test_a_cache_may_be_left_out_by_its_backend_alone():
    quality = {"tier": "lossy", "reference": {"without": ["cache.backend"]}}
    made = plan(quality=quality, cache={"backend": "dbcache", "residual_diff_threshold": 0.1})
    assert made.quality.recipe["cache"]["backend"] == "none"


def test_random_seeds_are_those_that_the_run_drew():
    made = plan(quality=WITHOUT_BF16, sampling={"seed": "random"})
    assert made.quality.recipe["sampling"]["seed"] == made.items[0].seed


def test_the_recipe_of_a_reference_makes_its_plan_again():
    recipe = plan(quality=WITHOUT_BF16, stages=BF16).quality.recipe
    assert make_plan(load_recipe(recipe), run=RunOptions()).recipe == recipe


def test_one_reference_serves_every_recipe_that_differs_in_what_is_left_out():
    assert key() == key(stages={}) == key(output={"format": "webp"}) == key(quality={**WITHOUT_BF16, "tier": "exact"})


@pytest.mark.parametrize(
    "changed",
    [
        {"sampling": {"num_inference_steps": 3}},
        {"sampling": {"prompt": "a red ring"}},
        {"sampling": {"seed": 8}},
        {"stages": {"denoising": {"precision": "bf16"}}},
        {"launch": {"threads": 2}},
        {"launch": {"device": "cpu"}},
        {"model": "builtin:shapes-video"},
    ],
    ids=str,
)
def test_another_reference_is_made_for_what_changes_its_pixels(changed):
    assert key(**changed) != key()


def test_other_weights_in_the_same_folder_need_another_reference(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"one")
    before = key(model=str(tmp_path))
    assert key(model=str(tmp_path)) == before
    weights.write_bytes(b"other")
    assert key(model=str(tmp_path)) != before


def test_what_would_make_other_items_cannot_be_left_out():
    without = {"without": ["sampling.seed", "sampling.prompt"]}
    assert "there is nothing to make" in str(refused(quality={"reference": without}))
    (problem,) = refused(quality={"reference": {"without": ["sampling.seed"]}}).problems
    assert problem.message == (
        "quality.reference.without: [sampling.seed] leaves other prompts or seeds; outputs would not pair"
    )


def test_the_files_of_a_folder_have_the_names_of_the_template(tmp_path):
    for name in ("a_red_circle-7.png", "a_blue_star-8.png", "a_blue_star-8.npz"):
        (tmp_path / name).touch()
    made = plan(quality={"tier": "near", "reference": {"dir": str(tmp_path)}}).quality
    assert made.files == (str(tmp_path / "a_red_circle-7.png"), str(tmp_path / "a_blue_star-8.npz"))
    assert (made.reference, made.recipe) == (f"the files in {tmp_path}", None)


def test_a_missing_file_is_named_with_how_to_make_it(tmp_path):
    (tmp_path / "a_red_circle-7.png").touch()
    error = refused(quality={"reference": {"dir": str(tmp_path)}})
    assert error.problems[0].message == (
        f"quality.reference.dir: {tmp_path} has no a_blue_star-8.npz or .png for item 1"
    )
    assert error.hint == (
        f"make them with the recipe to compare with: difftool generate RECIPE --return-frames -o {tmp_path}/"
    )


def test_a_problem_with_the_reference_stands_where_the_recipe_says_it(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: builtin:shapes-image\nsampling: {prompt: x}\nquality:\n  reference: {dir: refs}\n")
    with pytest.raises(RecipeError) as raised:
        make_plan(load_recipe(str(recipe)), run=RunOptions())
    assert str(raised.value).startswith(f"{recipe}:4:20: error: quality.reference.dir: ")

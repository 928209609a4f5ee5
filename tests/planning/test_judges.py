"""Models that are to score outputs: what is not there is refused before anything starts."""

import json

import pytest

from difftool.errors import RecipeError, WeightsError
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.references import quality_problems
from difftool.recipe.load import load_recipe

FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json")
REFERENCE = {"without": ["stages"]}


@pytest.fixture
def clip(tmp_path):
    """A folder that has the names of a CLIP model's files."""
    (tmp_path / "clip").mkdir()
    for name in FILES:
        (tmp_path / "clip" / name).write_text('{"model_type": "clip"}')
    return tmp_path / "clip"


def plan(model="builtin:shapes-image", **quality):
    content = {"model": model, "sampling": {"prompt": "a red circle"}, "quality": quality}
    return make_plan(load_recipe(content), run=RunOptions()).quality


def refused(**metrics):
    with pytest.raises(WeightsError) as raised:
        plan(reference=REFERENCE, metrics={name: str(path) for name, path in metrics.items()})
    assert raised.value.exit_code == 4
    return raised.value


def test_the_plan_holds_what_is_there_and_the_reference_needs_none_of_it(clip, tmp_path):
    (tmp_path / "lpips.safetensors").touch()
    found = plan(reference=REFERENCE, metrics={"lpips": str(tmp_path / "lpips.safetensors"), "clip": str(clip)})
    assert (found.lpips, found.clip) == (str(tmp_path / "lpips.safetensors"), str(clip))
    assert found.recipe["quality"]["metrics"] == {"lpips": None, "clip": None}


def test_paths_are_those_of_the_file_that_names_them(clip):
    recipe = clip.parent / "r.yaml"
    recipe.write_text("model: builtin:shapes-image\nsampling: {prompt: x}\nquality: {metrics: {clip: clip}}\n")
    assert make_plan(load_recipe(str(recipe)), run=RunOptions()).quality.clip == str(clip)


def test_a_file_that_is_not_there_comes_with_the_way_to_make_it(tmp_path):
    error = refused(lpips=tmp_path / "lpips.safetensors")
    assert error.message == f"quality.metrics.lpips: there is no file {tmp_path}/lpips.safetensors"
    assert "lpips.LPIPS(net='alex')" in error.hint


@pytest.mark.parametrize(
    ("name", "words"),
    [("alex.pth", "alex.pth is a pickle, which can run code when loaded: refused"), ("x.txt", "is no")],
)
def test_only_safetensors_are_read(tmp_path, name, words):
    (tmp_path / name).touch()
    assert words in refused(lpips=tmp_path / name).message


def test_a_folder_that_is_not_there_comes_with_the_way_to_get_it(tmp_path):
    error = refused(clip=tmp_path / "clip")
    assert error.message == f"quality.metrics.clip: there is no folder {tmp_path}/clip"
    assert error.hint.startswith("download one, for example: hf download openai/clip")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_without_a_file_of_the_model_is_refused(clip, name):
    (clip / name).unlink()
    message = refused(clip=clip).message
    assert message.startswith(f"quality.metrics.clip: {clip} has no ") and name in message


def test_another_model_is_named(clip):
    (clip / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    assert refused(clip=clip).message == (
        f"quality.metrics.clip: {clip} holds no CLIP model: its config.json has model_type siglip"
    )


def test_what_compares_with_a_reference_needs_one():
    with pytest.raises(RecipeError, match="quality.metrics.lpips compares with a reference; give quality.reference"):
        plan(metrics={"lpips": "x"})


def test_sound_has_no_scores():
    quality = {"tier": "none", "reference": None, "metrics": {"lpips": None, "clip": "x"}}
    (problem,) = quality_problems(quality, "audio")
    assert problem.message.startswith("quality: tiers, references and metrics are for pictures and videos")
    assert quality_problems(quality, "image") == []

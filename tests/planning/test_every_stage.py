"""A flag about every stage is about those that a model has; a stage it has not cannot be asked for by name."""

from pathlib import Path

import pytest

from difftool.errors import RecipeError
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.flags import flag_overrides
from difftool.recipe.load import load_recipe

PICTURE = str(Path(__file__).parents[2] / "docs/images/shapes.png")
SHAPES = {"model": "builtin:shapes-image"}
WAN = {"model": "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "sampling": {"image": PICTURE}}
STAGES = ("text_encoding", "image_encoding", "denoising", "decoding")
AWAY = {role: {"offload": "after_use"} for role in STAGES}


def plan(recipe, **flags):
    return make_plan(load_recipe(recipe, flag_overrides(flags)), run=RunOptions(preview=True))


def offloads(found):
    return [found.stages[role]["offload"] for role in STAGES]


def test_a_flag_about_every_stage_is_about_those_that_there_are():
    found = plan(SHAPES, enable_cpu_offload=True)
    assert offloads(found) == ["after_use", "auto", "after_use", "after_use"]
    assert found.provenance["stages.image_encoding.offload"] == "default"
    assert offloads(plan(found.recipe)) == offloads(found)  # the recipe inside a picture makes the same plan
    assert offloads(plan(WAN, enable_cpu_offload=True)) == ["after_use"] * 4


def test_so_is_a_key_of_a_flat_file(tmp_path):
    (tmp_path / "flat.yaml").write_text("model_path: builtin:shapes-image\nenable_cpu_offload: true\n")
    assert offloads(plan(tmp_path / "flat.yaml")) == ["after_use", "auto", "after_use", "after_use"]


@pytest.mark.parametrize(
    ("stages", "flags"),
    [
        ({}, {"offload": ["image_encoding=after_use"]}),
        ({}, {"offload": ["image_encoding=after_use", "text_encoding=after_use"]}),
        ({"image_encoding": {"offload": "layerwise"}}, {}),
        (AWAY, {}),
        ({"image_encoding": {"offload": "layerwise"}}, {"text_encoder_cpu_offload": True}),
    ],
)
def test_an_image_encoder_that_there_is_none_of_cannot_be_sent_away_by_name(stages, flags):
    with pytest.raises(RecipeError, match="stages.image_encoding.offload=.*: this model has no image encoder; leave"):
        plan({**SHAPES, "stages": stages}, **flags)
    plan({**WAN, "stages": stages}, **flags)

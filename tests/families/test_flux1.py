"""What FLUX.1's own facts say: sizes, pictures, and keys that would do nothing."""

import pytest
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from families.cases.case import picture

from difftool.errors import RecipeError
from difftool.families.flux1.facts import KONTEXT_SIZES, kontext_size
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe

KONTEXT = "black-forest-labs/FLUX.1-Kontext-dev"


def plan(model=KONTEXT, **sampling):
    return make_plan(
        load_recipe({"model": model, "sampling": {"prompt": "a red circle", **sampling}}), run=RunOptions()
    )


def refusal(**sampling):
    with pytest.raises(RecipeError) as error:
        plan(**sampling)
    return [problem.message for problem in error.value.problems]


@pytest.fixture
def wide(tmp_path):
    path = tmp_path / "wide.png"
    picture(160, 96).image.save(path)
    return str(path)


def test_the_trained_sizes_are_those_of_the_reference():
    assert list(KONTEXT_SIZES) == PREFERRED_KONTEXT_RESOLUTIONS


@pytest.mark.parametrize(
    ("size", "chosen"), [((64, 64), (1024, 1024)), ((4000, 1000), (1568, 672)), ((20, 900), (672, 1568))]
)
def test_the_nearest_trained_shape_is_chosen(size, chosen):
    assert kontext_size(*size) == chosen


def test_kontext_without_a_picture_has_the_reference_defaults():
    made = plan()
    (item,) = made.items
    assert made.task == "ti2i"
    assert (item.sampling["width"], item.sampling["height"]) == (1024, 1024)
    assert (item.sampling["guidance_scale"], item.sampling["num_inference_steps"]) == (2.5, 28)


def test_the_picture_decides_the_size_unless_the_recipe_does(wide):
    made = plan(image=wide)
    assert (made.items[0].sampling["width"], made.items[0].sampling["height"]) == (1328, 800)
    assert made.provenance["sampling.width"] == "sampling.image"
    given = plan(image=wide, width=512).items[0].sampling
    assert (given["width"], given["height"]) == (512, 1024)


def test_kontext_takes_one_picture_of_some_size(wide, tmp_path):
    small = str(tmp_path / "small.png")
    picture(12, 40).image.save(small)
    assert refusal(image=[wide, wide]) == ["sampling.image: 2 pictures; FLUX.1 takes 1 at most"]
    assert refusal(image=small) == [f"sampling.image: {small}: 12x40 is too small; both sides need 16 pixels"]


def test_an_argument_about_a_missing_picture_is_refused(wide):
    assert refusal(extra={"_auto_resize": False}) == [
        "sampling.extra._auto_resize: it is about the input picture, and there is none; give one with --image"
    ]
    assert plan(image=wide, extra={"_auto_resize": False}).items[0].sampling["extra"] == {"_auto_resize": False}


def test_the_picture_models_of_text_alone_take_none(wide):
    assert refusal(model="black-forest-labs/FLUX.1-dev", image=wide) == [
        "sampling.image: FLUX.1 makes pictures from text alone and takes no image"
    ]
    assert refusal(model="black-forest-labs/FLUX.1-dev", extra={"_auto_resize": True})[0].startswith(
        "sampling.extra._auto_resize: unknown argument"
    )

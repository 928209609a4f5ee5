"""What planning says of Qwen-Image, and what the family refuses."""

import pytest
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock
from families.cases.case import picture
from families.running import assemble_case, batch_for, run_ours

from difftool.errors import RecipeError
from difftool.families.qwenimage.facts import CONDITION_IMAGE_SIZE, VAE_IMAGE_SIZE, fit, fit_output
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe

HUB_IDS = ("Qwen/Qwen-Image", "Qwen/Qwen-Image-2512")
EDITS = {"Qwen/Qwen-Image-Edit": 50, "Qwen/Qwen-Image-Edit-2509": 40, "Qwen/Qwen-Image-Edit-2511": 40}  # steps
SIZES = [(1024, 1024), (1920, 1080), (640, 480), (30, 64), (97, 1013), (3, 600)]


@pytest.fixture
def pictures(tmp_path):
    """`pictures(*sizes)`: paths of pictures of these sizes."""

    def make(*sizes):
        paths = [str(tmp_path / f"{i}.png") for i in range(len(sizes))]
        for path, size in zip(paths, sizes, strict=True):
            picture(*size).image.save(path)
        return paths

    return make


def plan(model, **sampling):
    recipe = {"model": model, "sampling": {"prompt": "a coffee shop at dusk", **sampling}}
    return make_plan(load_recipe(recipe), run=RunOptions())


@pytest.mark.parametrize("hub_id", HUB_IDS)
def test_the_shortest_recipe_plans_with_the_guidance_of_the_model_card(hub_id):
    made = plan(hub_id)
    values = made.items[0].sampling
    assert (made.task, made.model.family) == ("t2i", "qwenimage")
    assert (values["true_cfg_scale"], values["num_inference_steps"]) == (4.0, 50)
    assert isinstance(values["negative_prompt"], str)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"guidance_scale": 3.5}, "guidance_scale: Qwen-Image ignores it; it takes .*true_cfg_scale"),
        ({"height": 1000}, "height=1000 is not a multiple of 16; nearest: 992, 1008"),
        ({"max_sequence_length": 1025}, "takes 1024 at most"),
        ({"num_frames": 5}, "makes single pictures"),
        ({"image": "cat.png"}, "takes no image"),
        ({"extra": {"prompt_2": "x"}}, "unknown argument"),
    ],
)
def test_what_the_checkpoint_would_ignore_is_refused(sampling, message):
    with pytest.raises(RecipeError, match=message):
        plan("Qwen/Qwen-Image", **sampling)


def test_one_step_of_a_schedule_with_a_fixed_end_is_refused():
    assembled = assemble_case("qwenimage")
    with pytest.raises(RecipeError, match="starts at 1 and ends at 0.02; use 2 or more"):
        run_ours(assembled, batch_for(assembled, num_inference_steps=1))


@pytest.mark.parametrize(("hub_id", "steps"), list(EDITS.items()))
def test_an_edit_needs_no_more_than_a_picture_and_takes_its_shape(hub_id, steps, pictures):
    made = plan(hub_id, image=pictures((1920, 1080)))
    values = made.items[0].sampling
    assert (made.task, values["num_inference_steps"], values["true_cfg_scale"]) == ("ti2i", steps, 4.0)
    assert (values["width"], values["height"]) == (1376, 768)
    assert "max_sequence_length" not in values


@pytest.mark.parametrize(("given", "size"), [({"height": 512}, (1376, 512)), ({"width": 512}, (512, 768))])
def test_a_side_that_is_not_given_is_that_of_the_picture_s_own_size_as_in_diffusers(given, size, pictures):
    made = plan("Qwen/Qwen-Image-Edit", image=pictures((1920, 1080)), **given)
    values = made.items[0].sampling
    assert (values["width"], values["height"]) == size
    (other,) = {"height", "width"} - given.keys()
    assert made.provenance[f"sampling.{other}"] == "sampling.image"


def test_of_several_pictures_the_last_gives_the_shape(pictures):
    values = plan("Qwen/Qwen-Image-Edit-2509", image=pictures((400, 100), (100, 400))).items[0].sampling
    assert (values["width"], values["height"]) == (512, 2048)


@pytest.mark.parametrize(
    ("hub_id", "sizes", "sampling", "message"),
    [
        ("Qwen/Qwen-Image-Edit", [], {}, "needs a picture"),
        ("Qwen/Qwen-Image-Edit", [(64, 64)] * 2, {}, "2 pictures; Qwen-Image takes 1 at most"),
        ("Qwen/Qwen-Image-Edit-2511", [(64, 64)] * 4, {}, "4 pictures; Qwen-Image takes 3 at most"),
        ("Qwen/Qwen-Image-Edit", [(64, 64)], {"max_sequence_length": 64}, "max_sequence_length: Qwen-Image ignores it"),
        ("Qwen/Qwen-Image-Edit", [(64, 64)], {"extra": {"condition_image_size": 9999}}, "unknown argument"),
        ("Qwen/Qwen-Image-Edit", [(64, 64)], {"extra": {"vae_image_size": 9}}, "vae_image_size=9: pixels, at least"),
        ("Qwen/Qwen-Image-Edit-2509", [(64, 64), (804, 4)], {}, "804x4: one side is over 200 times the other"),
    ],
)
def test_what_an_edit_cannot_do_is_refused(hub_id, sizes, sampling, message, pictures):
    with pytest.raises(RecipeError, match=message):
        plan(hub_id, **({"image": pictures(*sizes)} if sizes else {}), **sampling)


@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_resized_as_the_stock_pipelines_do_at_their_own_areas(size):
    """The parity tests run at small areas, for their speed; the default ones differ in nothing but the number."""
    assert (CONDITION_IMAGE_SIZE, VAE_IMAGE_SIZE) == (stock.CONDITION_IMAGE_SIZE, stock.VAE_IMAGE_SIZE)
    for area in (CONDITION_IMAGE_SIZE, VAE_IMAGE_SIZE):
        assert fit(area, *size) == stock.calculate_dimensions(area, size[0] / size[1])
    assert fit_output(*size) == stock.calculate_dimensions(1024 * 1024, size[0] / size[1])


def test_the_areas_change_what_is_made():
    assembled = assemble_case("qwenimage-edit-plus")
    base = batch_for(assembled, num_inference_steps=2)
    pixels = run_ours(assembled, base)[1]
    for key in base.extra:
        other = batch_for(assembled, num_inference_steps=2, extra={**base.extra, key: 128 * 128})
        assert not run_ours(assembled, other)[1].equal(pixels)

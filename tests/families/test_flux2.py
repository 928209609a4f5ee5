"""What FLUX.2's own facts say of sizes, pictures and guidance, and how its processor is read without torchvision."""

import json
import sys
from types import ModuleType

import pytest
import torch
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from diffusers.pipelines.flux2.pipeline_flux2 import SYSTEM_MESSAGE, format_input
from families.cases.case import picture
from families.cases.flux2 import mistral_tokenizer
from families.running import assemble_case, batch_for, run_ours
from transformers.models.pixtral import image_processing_pil_pixtral

from difftool.components.load import load_components
from difftool.errors import RecipeError
from difftool.families.flux2.facts import MIN_SIDE, picture_size, refuses_image
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe

DEV, KLEIN, BASE = (f"black-forest-labs/FLUX.2-{name}" for name in ("dev", "klein-4B", "klein-base-9B"))
TORCHVISION_PART = "transformers.models.pixtral.image_processing_pixtral"


def plan(model, **sampling):
    return make_plan(
        load_recipe({"model": model, "sampling": {"prompt": "a red circle", **sampling}}), run=RunOptions()
    )


def refusal(model, **sampling):
    with pytest.raises(RecipeError) as error:
        plan(model, **sampling)
    return [problem.message for problem in error.value.problems]


@pytest.fixture
def saved_picture(tmp_path):
    def save(width, height):
        path = tmp_path / f"{width}x{height}.png"
        picture(width, height).image.save(path)
        return str(path)

    return save


def test_every_checkpoint_plans_with_a_prompt_alone():
    values = {model: plan(model).items[0].sampling for model in (DEV, KLEIN, BASE)}
    assert [values[model]["num_inference_steps"] for model in values] == [50, 4, 50]
    assert [values[model]["guidance_scale"] for model in values] == [4.0, None, 4.0]
    assert [values[model].get("negative_prompt") for model in values] == [None, None, ""]


def test_a_distilled_checkpoint_is_not_guided():
    way = "this checkpoint has is_distilled and ignores it"
    assert refusal(KLEIN, guidance_scale=3) == [f"sampling.guidance_scale=3.0: {way}"]
    assert refusal(KLEIN, negative_prompt="x") == [f"sampling.negative_prompt=x: {way}"]
    assert plan(BASE, guidance_scale=3, negative_prompt="x").items[0].sampling["negative_prompt"] == "x"


def test_dev_has_no_negative_prompt():
    (said,) = refusal(DEV, negative_prompt="x")
    assert said.startswith("sampling.negative_prompt: FLUX.2 ignores it; it takes guidance_scale")


def test_the_first_picture_decides_the_size_unless_the_recipe_does(saved_picture):
    pictures = [saved_picture(300, 200), saved_picture(128, 128)]
    values = plan(KLEIN, image=pictures).items[0].sampling
    assert (values["width"], values["height"]) == (288, 192)
    assert plan(DEV, image=saved_picture(3000, 1500)).items[0].sampling["width"] == 1440
    for given, size in (({"height": 512}, (288, 512)), ({"width": 512}, (512, 192))):
        values = plan(DEV, image=pictures, **given).items[0].sampling
        assert (values["width"], values["height"]) == size, "the other side is the picture's, as in diffusers"


def test_pictures_are_limited_in_number_and_shape(saved_picture):
    good, small, long = saved_picture(64, 64), saved_picture(63, 100), saved_picture(64, 576)
    assert refusal(KLEIN, image=[good] * 5) == ["sampling.image: 5 pictures; FLUX.2 takes 4 at most"]
    assert refusal(DEV, image=[good] * 11) == ["sampling.image: 11 pictures; FLUX.2 takes 10 at most"]
    assert refusal(DEV, image=[good, small]) == [
        f"sampling.image: {small}: 63x100 is too small; both sides need 64 pixels"
    ]
    assert refusal(DEV, image=long) == [
        f"sampling.image: {long}: 64x576 is too long; one side may be 8 times the other"
    ]


@pytest.mark.parametrize("size", [(64, 64), (63, 64), (64, 512), (64, 513), (513, 64), (2000, 300)])
def test_the_limits_of_a_picture_are_those_of_the_reference(size):
    try:
        Flux2ImageProcessor.check_image_input(picture(*size).image)
        accepted = True
    except ValueError:
        accepted = False
    assert accepted == (not refuses_image(*size))


@pytest.mark.parametrize("size", [(64, MIN_SIDE), (70, 100), (1024, 1024), (1025, 1024), (1700, 800), (4000, 600)])
def test_a_picture_s_size_is_that_of_the_reference(size):
    image = Flux2ImageProcessor._resize_if_exceeds_area(picture(*size).image)
    assert picture_size(*size) == tuple(side // 16 * 16 for side in image.size)


@pytest.mark.parametrize("name", ["flux2-dev", "flux2-klein", "flux2-klein-base"])
@pytest.mark.parametrize(
    "changes",
    [{"prompt": ["two cats"]}, {"image": ()}, {"image": (picture(64, 80, 5),)}],
    ids=["text", "none", "other"],
)
def test_text_and_pictures_change_what_is_made(name, changes):
    assembled = assemble_case(name)
    assert not torch.equal(
        run_ours(assembled, batch_for(assembled))[1], run_ours(assembled, batch_for(assembled, **changes))[1]
    )


@pytest.fixture
def processor(monkeypatch):
    """transformers' PixtralProcessor around the tiny tokenizer. Its module imports a size rule from one that needs
    torchvision: a stand-in gives that rule from the sibling that needs PIL.
    """
    standin = ModuleType(TORCHVISION_PART)
    standin.get_resize_output_image_size = image_processing_pil_pixtral.get_resize_output_image_size
    monkeypatch.setitem(sys.modules, TORCHVISION_PART, standin)
    from transformers.models.pixtral.processing_pixtral import PixtralProcessor

    tokenizer = mistral_tokenizer()
    return PixtralProcessor(
        image_processor=image_processing_pil_pixtral.PixtralImageProcessorPil(),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )


def test_the_tokenizer_alone_makes_what_the_processor_makes_of_text(processor, tmp_path):
    processor.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "Flux2Pipeline", "tokenizer": ["transformers", "PixtralProcessor"]})
    )
    nothing = dict.fromkeys(("scheduler", "vae", "text_encoder", "transformer"))
    loaded = load_components(
        ["tokenizer"],
        "Flux2Pipeline",
        tmp_path,
        optional=tuple(nothing),
        tokenizers=["tokenizer"],
        dtypes={},
        device=torch.device("cpu"),
        loaded=lambda **values: None,
    )
    texts = format_input(["a red circle", "two [IMG] cats, " * 30], system_message=SYSTEM_MESSAGE)
    how = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": False}
    how |= {"padding": "max_length", "truncation": True, "max_length": 300}
    ours, theirs = loaded.tokenizer.apply_chat_template(texts, **how), processor.apply_chat_template(texts, **how)
    for key in ("input_ids", "attention_mask"):
        assert torch.equal(ours[key], theirs[key])
    assert ours["attention_mask"].sum(dim=1)[0] < 300 == ours["attention_mask"].sum(dim=1)[1]

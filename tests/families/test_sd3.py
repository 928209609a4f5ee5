"""What is Stable Diffusion 3's own: a third text encoder that may be absent, and guidance that skips layers."""

import pytest
import torch
from families.branches import joint_and_separate, part_in_a_million
from families.planned import refusals, sampled
from families.running import assemble_case, batch_for, run_ours

from difftool.components.load import hold
from difftool.errors import PlanError
from difftool.families.sd3.facts import skip_steps
from difftool.families.sd3.model import SD3Config

MEDIUM, LARGE = "stabilityai/stable-diffusion-3.5-medium", "stabilityai/stable-diffusion-3.5-large"
TURBO, FIRST = f"{LARGE}-turbo", "stabilityai/stable-diffusion-3-medium-diffusers"


@pytest.fixture(scope="module")
def without_t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd3")
    assemble_case("sd3-without-t5").stock.save_pretrained(folder)
    return folder


def test_every_branch_may_be_a_forward_of_its_own(monkeypatch):
    assembled = assemble_case("sd3-medium")
    extra = {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.7}
    batch = batch_for(assembled, extra=extra)
    joint, separate = joint_and_separate(assembled, batch, monkeypatch)
    torch.testing.assert_close(separate, joint, rtol=0, atol=part_in_a_million(joint))


@pytest.mark.parametrize(
    ("steps", "extra", "expected"),
    [
        (40, {}, range(1, 8)),  # 0.4 < i < 8
        (28, {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.5}, range(1, 14)),
        (4, {}, range(0)),
        (10, {"skip_layer_guidance_start": 0.5, "skip_layer_guidance_stop": 2.0}, range(6, 10)),
    ],
)
def test_layers_are_skipped_strictly_between_two_fractions_of_the_run(steps, extra, expected):
    assert skip_steps(extra, steps) == expected


def test_checkpoints_run_as_their_cards_say():
    keys = ("num_inference_steps", "guidance_scale")
    found = {model: tuple(sampled(model)[key] for key in keys) for model in (MEDIUM, LARGE, TURBO, FIRST)}
    assert found == {MEDIUM: (40, 4.5), LARGE: (28, 3.5), TURBO: (4, 0.0), FIRST: (28, 7.0)}


BAD = [
    (LARGE, {"height": 4096}, "sampling.height=4096: this checkpoint has positions for 3072 pixels a side"),
    (
        TURBO,
        {"extra": {"skip_guidance_layers": [7]}},
        "sampling.extra.skip_guidance_layers: ignored at guidance_scale=0.0; set guidance_scale above 1",
    ),
    (
        MEDIUM,
        {"extra": {"skip_layer_guidance_scale": 2.0}},
        "sampling.extra.skip_layer_guidance_scale: ignored without skip_guidance_layers; name the layers to skip",
    ),
    (
        MEDIUM,
        {"extra": {"skip_guidance_layers": [7, 24]}},
        "sampling.extra.skip_guidance_layers=[7, 24]: this checkpoint has layers 0 to 23",
    ),
    (
        MEDIUM,
        {"extra": {"skip_guidance_layers": ["all"]}},
        "sampling.extra.skip_guidance_layers=['all']: give a list of layer numbers, such as [7, 8, 9]",
    ),
    (
        MEDIUM,
        {"extra": {"skip_guidance_layers": [7]}, "num_inference_steps": 4},
        "sampling.extra.skip_guidance_layers: none of 4 steps is between skip_layer_guidance_start and "
        "skip_layer_guidance_stop",
    ),
    (MEDIUM, {"extra": {"clip_skip": 12}}, "sampling.extra.clip_skip=12: give 0 to 11 layers of CLIP to leave out"),
]


@pytest.mark.parametrize(("model", "values", "message"), BAD, ids=lambda value: "")
def test_what_would_be_ignored_or_fail_is_refused(model, values, message):
    assert refusals(model, **values) == [message]


def test_what_the_card_of_3_5_medium_recommends_is_planned():
    assert sampled(MEDIUM, extra={"skip_guidance_layers": [7, 8, 9]})["extra"]["skip_guidance_layers"] == [7, 8, 9]
    assert sampled(MEDIUM, height=4096)["height"] == 4096


def test_a_text_for_an_encoder_that_a_folder_lacks_is_refused(without_t5):
    message = "sampling.extra.prompt_3: this checkpoint has no text_encoder_3 and ignores it"
    assert refusals(str(without_t5), height=64, width=64, extra={"prompt_3": "x"}) == [message]


def test_a_mu_that_the_scheduler_ignores_is_refused():
    assembled = assemble_case("sd3-medium")
    with pytest.raises(PlanError, match=r"sampling.extra.mu=1.5: the scheduler shifts by a constant and ignores it"):
        run_ours(assembled, batch_for(assembled, extra={"mu": 1.5}))


def test_an_image_encoder_that_a_folder_lists_is_left_alone():
    modules = assemble_case("sd3-without-t5").components.modules
    held = hold(SD3Config.holder, modules, {"image_encoder": ["transformers", "SiglipVisionModel"]})
    assert held.image_encoder is None and held.transformer is modules["transformer"]

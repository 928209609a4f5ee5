"""What is Z-Image's own: guidance above 0, its two further arguments, and branches that may run alone."""

import pytest
import torch
from families.branches import joint_and_separate, part_in_a_million
from families.planned import refusals, sampled
from families.running import assemble_case, batch_for, run_ours

from difftool.families.zimage.model import ZImageConfig

BASE, TURBO = "Tongyi-MAI/Z-Image", "Tongyi-MAI/Z-Image-Turbo"
GUIDED = {"prompt": ["a red circle", "two cats"], "negative_prompt": ["grey", "a longer text"], "seeds": [1, 2]}


def test_both_branches_in_one_forward_equal_two_forwards(monkeypatch):
    assembled = assemble_case("zimage")
    batch = batch_for(assembled, **GUIDED)
    joint, separate = joint_and_separate(assembled, batch, monkeypatch)
    torch.testing.assert_close(separate, joint, rtol=0, atol=part_in_a_million(joint))


def test_past_cfg_truncation_the_negative_prompt_is_not_computed(monkeypatch):
    assembled = assemble_case("zimage")
    samples, predict = [], ZImageConfig.predict

    def counted(self, transformer, model_input, time, branch):
        samples.append(len(model_input))
        return predict(self, transformer, model_input, time, branch)

    monkeypatch.setattr(ZImageConfig, "predict", counted)
    run_ours(assembled, batch_for(assembled, extra={"cfg_truncation": 0.2}))  # times 0, 0.1, 0.25, 0.5
    assert samples == [2, 2, 1, 1]


def test_the_turbo_runs_eight_steps_without_guidance():
    base, turbo = (sampled(model) for model in (BASE, TURBO))
    assert (base["num_inference_steps"], base["guidance_scale"], base["negative_prompt"]) == (50, 5.0, "")
    assert (turbo["num_inference_steps"], turbo["guidance_scale"]) == (8, 0.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"negative_prompt": "x"},
            "sampling.negative_prompt: ignored at guidance_scale=0.0; set guidance_scale above 0",
        ),
        (
            {"extra": {"cfg_normalization": True}},
            "sampling.extra.cfg_normalization: ignored at guidance_scale=0.0; set guidance_scale above 0",
        ),
        ({"height": 1000}, "sampling.height=1000 is not a multiple of 16; nearest: 992, 1008"),
        ({"image": "x.png"}, "sampling.image: Z-Image makes pictures from text alone and takes no image"),
    ],
    ids=lambda value: "",
)
def test_what_the_turbo_cannot_honour_is_refused(values, message):
    assert refusals(TURBO, **values) == [message]


def test_any_guidance_above_zero_runs_a_second_branch():
    assert sampled(TURBO, guidance_scale=0.5, negative_prompt="y")["negative_prompt"] == "y"

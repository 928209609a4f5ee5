"""Our loop against the stock pipeline on the same loaded components: latents of every step and pixels, bit for bit."""

from dataclasses import replace

import pytest
import torch
from diffusers import DiffusionPipeline
from families.cases import CASES
from families.running import assemble_case, batch_for, context_for, run_ours, run_stock

NAMES = [case.name for case in CASES]
REQUESTS = {
    "4 steps": {},
    "20 steps": {"num_inference_steps": 20},
    "wide": {"width": 128, "seeds": [123456789]},
    "tall, one step": {"height": 96, "num_inference_steps": 1, "seeds": [0]},
    "three prompts": {"prompt": ["a red circle", "two cats", ""], "seeds": [1, 2, 3]},
    "guided": {"true_cfg_scale": 2.5, "negative_prompt": [""]},
    "guided, two prompts": {
        "true_cfg_scale": 4.0,
        "negative_prompt": ["blurry", "blurry"],
        "prompt": ["a", "b"],
        "seeds": [5, 5],
    },
}


@pytest.mark.parametrize("request_name", list(REQUESTS))
@pytest.mark.parametrize("name", NAMES)
def test_every_step_and_pixel_equals_the_stock_pipeline(name, request_name):
    assembled = assemble_case(name)
    batch = batch_for(assembled, **REQUESTS[request_name])
    expected_steps, expected_pixels = run_stock(assembled, batch)
    steps, pixels = run_ours(assembled, batch)
    assert len(steps) == len(expected_steps) == batch.num_inference_steps
    for i, (ours, stock) in enumerate(zip(steps, expected_steps, strict=True)):
        assert torch.equal(ours, stock), f"latents differ after step {i}"
    assert torch.equal(pixels, expected_pixels)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_means_the_same_picture_wherever_it_stands_in_a_batch(name):
    assembled = assemble_case(name)
    alone = run_ours(assembled, batch_for(assembled, seeds=[9]))[0][-1]
    prompts = ["two cats", "a red circle"]
    together = run_ours(assembled, batch_for(assembled, prompt=prompts, seeds=[1, 9]))[0][-1]
    # the batch's size changes the kernels' order of summation, hence rounding and not bits
    torch.testing.assert_close(together[1], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_of_one_request_are_equal_and_leave_nothing_behind(name):
    assembled = assemble_case(name)
    modules = dict(assembled.components.transformer.named_modules())
    first = run_ours(assembled, batch_for(assembled))[1]
    run_ours(assembled, batch_for(assembled, width=128, num_inference_steps=2))
    assert torch.equal(first, run_ours(assembled, batch_for(assembled))[1])
    assert dict(assembled.components.transformer.named_modules()) == modules


@pytest.mark.parametrize("name", NAMES)
def test_a_failing_step_leaves_the_transformer_as_it_was(name, monkeypatch):
    assembled = assemble_case(name)
    modules = dict(assembled.components.transformer.named_modules())

    def fail(*args, **kwargs):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(type(assembled.config), "combine", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        assembled.pipeline(batch_for(assembled), context_for(assembled))
    assert dict(assembled.components.transformer.named_modules()) == modules


@pytest.mark.parametrize("name", NAMES)
def test_no_native_run_calls_a_diffusers_pipeline(name, monkeypatch):
    assembled = assemble_case(name)

    def refuse(self, *args, **kwargs):
        raise AssertionError("a native run called the stock pipeline")

    for kind in (DiffusionPipeline, type(assembled.stock)):
        monkeypatch.setattr(kind, "__call__", refuse, raising=False)
    assert run_ours(assembled, batch_for(assembled))[1].shape[0] == 1


def test_parity_turns_red_when_the_guidance_formula_is_wrong(monkeypatch):
    assembled = assemble_case(NAMES[0])
    batch = replace(batch_for(assembled), true_cfg_scale=2.5, negative_prompt=[""])
    expected = run_stock(assembled, batch)[1]
    monkeypatch.setattr(type(assembled.config), "combine", lambda self, p, batch: p[0] + 2.5 * (p[0] - p[1]))
    assert not torch.equal(run_ours(assembled, batch)[1], expected)

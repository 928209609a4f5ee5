"""Our loop against the stock pipeline on the same loaded components: latents of every step and pixels, bit for bit."""

from dataclasses import replace

import pytest
import torch
from diffusers import DiffusionPipeline
from families.cases import CASES
from families.running import PAIR, assemble_case, batch_for, context_for, requests, run_ours, run_stock

NAMES = [case.name for case in CASES]
BATCHING = [case.name for case in CASES if case.batches]
EVERY_REQUEST = [(case.name, request) for case in CASES for request in requests(case)]


def assert_equal(ours, stock, case, what):
    if not case.tolerance:
        assert torch.equal(ours, stock), f"{what} differ by {(ours - stock).abs().max():.2e}"
    torch.testing.assert_close(
        ours, stock, rtol=0, atol=case.tolerance, msg=lambda text: f"{what}: {text} ({case.why})"
    )


@pytest.mark.parametrize(("name", "request_name"), EVERY_REQUEST)
def test_every_step_and_pixel_equals_the_stock_pipeline(name, request_name):
    assembled = assemble_case(name)
    case = assembled.case
    batch = batch_for(assembled, **requests(case)[request_name])
    expected_steps, expected_pixels = run_stock(assembled, batch)
    steps, pixels = run_ours(assembled, batch)
    assert len(steps) == len(expected_steps) == batch.num_inference_steps
    for i, (ours, stock) in enumerate(zip(steps, expected_steps, strict=True)):
        assert_equal(ours, stock, case, f"latents after step {i}")
    assert_equal(pixels, expected_pixels, case, "pixels")
    assert pixels.isfinite().all() and pixels.min() >= 0 and pixels.max() <= 1 and pixels.std() > 0


@pytest.mark.parametrize("name", BATCHING)
def test_a_seed_means_the_same_picture_wherever_it_stands_in_a_batch(name):
    assembled = assemble_case(name)
    negative = batch_for(assembled).negative_prompt
    alone = run_ours(assembled, batch_for(assembled, seeds=[9]))[0][-1]
    two = {"prompt": PAIR[::-1], "seeds": [1, 9], "negative_prompt": negative and negative * 2}
    together = run_ours(assembled, batch_for(assembled, **two))[0][-1]
    # the batch's size changes the kernels' order of summation, hence rounding and not bits
    torch.testing.assert_close(together[1], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_of_one_request_are_equal_and_leave_nothing_behind(name):
    assembled = assemble_case(name)
    modules = dict(assembled.components.transformer.named_modules())
    batch = batch_for(assembled)
    first = run_ours(assembled, batch)[1]
    run_ours(assembled, replace(batch, width=2 * batch.width, num_inference_steps=2))
    assert torch.equal(first, run_ours(assembled, batch)[1])
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

    for kind in (DiffusionPipeline, type(assembled.stock), type(assembled.components.holder)):
        monkeypatch.setattr(kind, "__call__", refuse, raising=False)
    assert run_ours(assembled, batch_for(assembled))[1].shape[0] == 1


def test_parity_turns_red_when_the_guidance_formula_is_wrong(monkeypatch):
    assembled = assemble_case("flux1-dev")
    batch = batch_for(assembled, true_cfg_scale=2.5, negative_prompt=[""])
    expected = run_stock(assembled, batch)[1]

    def without_the_negative(self, found, batch, i):
        return found["positive"] + 2.5 * (found["positive"] - found["negative"])

    monkeypatch.setattr(type(assembled.config), "combine", without_the_negative)
    assert not torch.equal(run_ours(assembled, batch)[1], expected)

"""The FLOPs that a dump tells of an item's denoising are those that torch counts, with a cache and without one."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from families.caching import STEPS, cached, guided, spec_of
from families.cases import CASES
from families.choosing import first_of_each
from families.running import assemble_case, batch_for, context_for
from families.split import prepared
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from difftool.pipeline.flops import block_shares, denoiser_calls, item_flops
from difftool.pipeline.registry import load_config
from difftool.report.reuse import with_shares
from difftool.stages.denoising import DenoisingStage

FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
EAGER = {"residual_diff_threshold": 0.9}  # reuses whatever it may


def attention_flops(query, key, value, *rest, out_shape=None, **named):
    return sdpa_flop_count(query, key, value)


def costed():
    """The cases whose families say what they cost. A tiny image encoder makes fewer tokens than the real one."""
    for case in CASES:
        config = load_config(case.family, case.pipeline_class)
        if config.facts.cost is not None and not (case.family == "wan" and "image_encoding" in config.roles):
            yield case


def denoised(assembled, batch, cache=None):
    """What torch counts in the denoising of a batch, and the forwards that its family tells of it. Nothing is computed
    once for all steps: the formula is of a model that computes it in each.
    """
    ctx, config = replace(context_for(assembled), cache=cache), copy.copy(assembled.config)
    config.loop_constants = lambda components, batch: nullcontext()
    (kind,) = (type(stage) for stage in assembled.pipeline.stages if isinstance(stage, DenoisingStage))
    loop, batch = kind(config), prepared(assembled, batch, ctx)
    with FlopCounterMode(display=False, custom_mapping={FLASH: attention_flops}) as counted:
        loop.forward(batch, ctx)
    values = {key: getattr(batch, key) for key in ("height", "width", "num_frames", "max_sequence_length", "extra")}
    values |= {"num_inference_steps": batch.num_inference_steps, "last_image": batch.last_image}
    calls = denoiser_calls(config, assembled.components, batch, values, joined=True)
    return counted.get_total_flops(), calls


@pytest.mark.parametrize("name", list(first_of_each(costed())))
def test_an_item_has_the_flops_that_torch_counts_in_all_its_steps_and_branches(name):
    assembled = assemble_case(name)
    counted, calls = denoised(assembled, guided(assembled, num_inference_steps=4))
    assert counted == item_flops(calls) > 0


def test_two_texts_of_unlike_length_in_one_forward_count_as_long_as_the_longer():
    assembled = assemble_case("zimage")
    batch = guided(assembled, negative_prompt=["a much longer text than the other one, so that it is filled up"])
    counted, calls = denoised(assembled, replace(batch, num_inference_steps=2))
    assert counted == pytest.approx(item_flops(calls), rel=5e-3)  # the layer before the refiner takes each text alone
    assert [(call.branches, call.samples) for call in calls] == [(("positive", "negative"), 2)]


@pytest.mark.parametrize("name", ["flux1-schnell", "wan21-t2v"])
def test_what_a_cache_leaves_out_is_not_counted(name):
    assembled = assemble_case(name)
    batch = batch_for(assembled, num_inference_steps=STEPS)
    with cached(assembled, spec_of(**EAGER)) as caches:
        counted, calls = denoised(assembled, batch, caches)
        use = with_shares(caches.used(), block_shares(calls[0].anatomy))
    assert use.reused > 0 and use.computed_part < 1
    assert counted == pytest.approx(item_flops(calls, part=use.computed_part), rel=1e-9)


def test_without_a_formula_or_the_part_that_was_computed_there_is_no_number():
    assembled = assemble_case("flux1-dev")
    _, calls = denoised(assembled, batch_for(assembled, num_inference_steps=1))
    assert item_flops(calls, part=None) is None and item_flops(()) is None

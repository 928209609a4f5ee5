"""DMD sampling: the noise levels, and that the comparison with the plain reference can fail."""

from dataclasses import replace

import pytest
import torch
from families.plain_dmd import STEPS, PlainDmd, shifted_levels
from families.running import assemble_case, batch_for, context_for, run_ours, run_stock

from difftool.stages.dmd_denoising import nearest_sigmas

CASE = "fastwan22-ti2v"


def test_each_step_is_at_the_training_level_nearest_to_its_time():
    levels = nearest_sigmas(STEPS, shift=8.0)
    assert levels.tolist() == pytest.approx([1.0, 0.756757, 0.521739], abs=1e-6)  # 8 s / (1 + 7 s) at 1, .280, .120
    assert torch.equal(levels, torch.stack(PlainDmd(None).levels))
    assert set(levels.tolist()) < set(shifted_levels().tolist())


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_parity_turns_red_when_one_level_is_off(step):
    assembled = assemble_case(CASE)
    batch = batch_for(assembled)
    off = PlainDmd(assembled.stock.pipeline)
    off.levels[step] = off.levels[step] + 1e-3
    ours = run_ours(assembled, batch)[1]
    assert torch.equal(run_stock(assembled, batch)[1], ours)
    assert not torch.equal(run_stock(replace(assembled, stock=off), batch)[1], ours)


def test_the_noise_between_steps_is_fresh_and_each_sample_s_own():
    assembled = assemble_case(CASE)
    batch = batch_for(assembled, prompt=["a", "b"], seeds=[7, 9])
    ctx = context_for(assembled)
    config = assembled.config
    latents, _ = config.prepare_latents(assembled.components, batch, ctx.device)
    schedule, _ = config.prepare_timesteps(assembled.components, replace(batch, latents=latents), ctx.device)
    first, second = schedule.noises
    assert not torch.equal(first, second) and not torch.equal(first, latents)
    alone = replace(batch_for(assembled, seeds=[9]), latents=latents[1:])
    assert torch.equal(config.prepare_timesteps(assembled.components, alone, ctx.device)[0].noises[1][0], second[1])

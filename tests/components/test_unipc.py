"""UniPC with its coefficients on the host moves as diffusers' own does."""

from contextlib import nullcontext

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from pipeline.host_sync_guard import HostSync, forbid_host_sync

from difftool.components.schedulers import fresh_scheduler
from difftool.components.unipc import HostUniPC

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def walk(scheduler, steps, guard=nullcontext):
    """Latents after every step, with predictions that depend on where they are."""
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    latents = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    visited = []
    for i, t in enumerate(scheduler.timesteps):
        with guard():
            latents = scheduler.step((latents * (i + 2)).sin(), t, latents, return_dict=False)[0]
        visited.append(latents)
    return visited


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize(
    "changes",
    [FLOW, {**FLOW, "solver_order": 1}, {**FLOW, "flow_shift": 12.0}, {**FLOW, "lower_order_final": False}],
    ids=["second order", "first order", "shifted", "second order to the end"],
)
def test_every_step_equals_diffusers(changes, steps):
    stock = UniPCMultistepScheduler(**changes)
    ours = fresh_scheduler(stock, {})
    assert type(ours) is HostUniPC
    assert all(torch.equal(a, b) for a, b in zip(walk(ours, steps), walk(stock, steps), strict=True))


def test_another_level_leads_elsewhere():
    stock, ours = UniPCMultistepScheduler(**FLOW), HostUniPC(**{**FLOW, "flow_shift": 3.01})
    assert not torch.equal(walk(ours, 4)[-1], walk(stock, 4)[-1])


def test_no_step_waits_for_the_device_as_diffusers_does():
    walk(HostUniPC(**FLOW), 4, forbid_host_sync)
    with pytest.raises(HostSync, match="linalg"):
        walk(UniPCMultistepScheduler(**FLOW), 4, forbid_host_sync)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(),
        UniPCMultistepScheduler(**FLOW, solver_order=3),
        UniPCMultistepScheduler(**FLOW, solver_type="bh1"),
        UniPCMultistepScheduler(),
    ],
    ids=["another scheduler", "third order", "bh1", "no flow"],
)
def test_what_it_does_not_cover_keeps_its_class(scheduler):
    assert type(fresh_scheduler(scheduler, {})) is type(scheduler)

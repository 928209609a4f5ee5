"""Nothing in the denoising loop waits for the device: checked while it runs, not by reading the code."""

from dataclasses import replace

import pytest
import torch
from families.cases import CASES
from families.running import assemble_case, batch_for, context_for
from pipeline.host_sync_guard import HostSync, forbid_host_sync

from difftool.stages.denoising import DenoisingStage


def run_guarded(case_name, monkeypatch, sabotage=None):
    """Runs a case's pipeline with the guard around every loop turn."""
    assembled = assemble_case(case_name)
    one_step = DenoisingStage.one_step

    def guarded(self, batch, ctx, latents, time, i):
        with forbid_host_sync():
            if sabotage is not None:
                sabotage(latents)
            return one_step(self, batch, ctx, latents, time, i)

    monkeypatch.setattr(DenoisingStage, "one_step", guarded)
    batch = replace(batch_for(assembled), true_cfg_scale=2.0, negative_prompt=["dull"])
    return assembled.pipeline(batch, context_for(assembled))


@pytest.mark.parametrize("case", [case.name for case in CASES])
def test_the_loop_never_waits_for_the_device(case, monkeypatch):
    assert run_guarded(case, monkeypatch).pixels is not None


SABOTAGE = {
    "item": lambda x: x[0, 0, 0].item(),
    "bool": lambda x: bool(x.isnan().any()),
    "float": lambda x: float(x.mean()),
    "cpu": lambda x: x.cpu(),
    "tolist": lambda x: x.tolist(),
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: torch.nonzero(x),
    "equal": lambda x: torch.equal(x, x),
}


@pytest.mark.parametrize("way", list(SABOTAGE))
def test_the_guard_sees_every_way_of_waiting(way, monkeypatch):
    with pytest.raises(HostSync, match="waits for the device"):
        run_guarded(CASES[0].name, monkeypatch, SABOTAGE[way])

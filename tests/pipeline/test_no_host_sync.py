"""Nothing in the denoising loop waits for the device: checked while it runs, not by reading the code."""

import pytest
import torch
from families.cases import CASES
from families.running import assemble_case, batch_for, context_for, requests
from pipeline.host_sync_guard import HostSync, forbid_host_sync

from difftool.stages.denoising import DenoisingStage


def run_guarded(case_name, monkeypatch, sabotage=None):
    """Runs a case's pipeline with the guard around every loop turn."""
    assembled = assemble_case(case_name)
    one_step = DenoisingStage.one_step

    def guarded(self, batch, ctx, calls, latents, time, i):
        with forbid_host_sync():
            if sabotage is not None:
                sabotage(latents)
            return one_step(self, batch, ctx, calls, latents, time, i)

    monkeypatch.setattr(DenoisingStage, "one_step", guarded)
    batch = batch_for(assembled, **requests(assembled.case).get("guided", {}))
    return assembled.pipeline(batch, context_for(assembled))


@pytest.mark.parametrize("case", [case.name for case in CASES if not case.waits])
def test_the_loop_never_waits_for_the_device(case, monkeypatch):
    assert run_guarded(case, monkeypatch).pixels is not None


@pytest.mark.parametrize("case", [case.name for case in CASES if case.waits])
def test_a_model_that_waits_by_itself_still_does(case, monkeypatch):
    """What the case says of its class is true; this turns red when the class is mended."""
    with pytest.raises(HostSync):
        run_guarded(case, monkeypatch)


SABOTAGE = {
    "item": lambda x: x[0, 0, 0].item(),
    "bool": lambda x: bool(x.isnan().any()),
    "float": lambda x: float(x.mean()),
    "cpu": lambda x: x.cpu(),
    "tolist": lambda x: x.tolist(),
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: torch.nonzero(x),
    "equal": lambda x: torch.equal(x, x),
    "solve": lambda x: torch.linalg.solve(x.new_ones(1, 1), x.new_ones(1)),
}


@pytest.mark.parametrize("way", list(SABOTAGE))
def test_the_guard_sees_every_way_of_waiting(way, monkeypatch):
    with pytest.raises(HostSync, match="waits for the device"):
        run_guarded("flux1-dev", monkeypatch, SABOTAGE[way])

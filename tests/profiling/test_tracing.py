"""What the operations of a recording are for."""

import time

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from difftool.profiling.tracing import _operations


def test_all_that_runs_in_a_collective_is_communication():
    matrix = torch.ones(64, 64)
    with profile(activities=[ProfilerActivity.CPU]) as done, record_function("stage: denoising"):
        matrix @ matrix
        with record_function("collective: ring wait"):
            time.sleep(0.05)
            matrix.clone()
        matrix.clone()
    found = [(kind, name) for name, kind, _ in _operations(done, "cpu")]
    assert ("matmul", "aten::mm") in found
    assert ("communication", "collective: ring wait") in found
    assert found.count(("communication", "aten::clone")) == found.count(("copies", "aten::clone")) == 1
    assert sum(ms for _, kind, ms in _operations(done, "cpu") if kind == "communication") >= 50

"""The history of CUDA's allocator: kept for as long as an item takes, written whatever its end."""

import pickle
import re

import pytest
import torch

from difftool.errors import OutputError, PlanError
from difftool.platforms.memory_history import check_memory_snapshot, memory_history


@pytest.fixture
def allocator(monkeypatch):
    """What is asked of CUDA's allocator, which a CPU build of torch has not."""
    asked = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **how: asked.append(how))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda file: asked.append(file))
    return asked


def test_it_is_written_at_the_end_and_kept_no_longer(allocator, tmp_path):
    with memory_history(tmp_path / "out" / "x.pickle"):
        assert allocator == [{"stacks": "python"}]
    assert allocator[1:] == [str(tmp_path / "out" / "x.pickle"), {"enabled": None}]


def test_an_item_that_runs_out_of_memory_leaves_it_too(allocator, tmp_path):
    with pytest.raises(MemoryError), memory_history(tmp_path / "x.pickle"):
        raise MemoryError
    assert allocator[1:] == [str(tmp_path / "x.pickle"), {"enabled": None}]


def test_a_disk_that_takes_no_snapshot_is_told(allocator, monkeypatch, tmp_path):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", full)
    message = f"cannot write {tmp_path}/x.pickle: No space left on device"
    with pytest.raises(OutputError, match=re.escape(message)), memory_history(tmp_path / "x.pickle"):
        pass
    assert allocator[-1] == {"enabled": None}


def test_without_a_file_nothing_is_asked(allocator):
    with memory_history(None):
        pass
    assert allocator == []


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_device_without_a_history_is_refused(device):
    with pytest.raises(PlanError, match=f"this run is on {device}, whose keeps no history"):
        check_memory_snapshot(device)
    check_memory_snapshot("cuda")


@pytest.mark.gpu
def test_cuda_tells_what_was_allocated(tmp_path):
    with memory_history(tmp_path / "x.pickle"):
        torch.zeros(1 << 20, device="cuda")
    traces = pickle.loads((tmp_path / "x.pickle").read_bytes())["device_traces"]
    assert any(entry["action"] == "alloc" and entry["size"] == 4 << 20 for trace in traces for entry in trace)

"""Host memory readings, and a worker that does not outlive its launcher."""

import os
import signal
import subprocess
import sys
import time
from mmap import mmap

import pytest

from difftool.platforms import host
from difftool.platforms.base import current

LAUNCHER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", '''
import os, sys, time
from difftool.platforms.host import die_with_parent
die_with_parent(os.getppid())
print("ready", os.getpid(), flush=True)
time.sleep(600)
'''])
time.sleep(600)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is only resettable on Linux")
def test_peak_memory_follows_an_allocation_and_its_reset():
    host.reset_peak_memory()
    before = host.memory()["peak_host_mb"]
    block = mmap(-1, 64 * host.MIB)  # pages of its own: an allocator may hand out what the process holds already
    for _ in range(64):
        block.write(bytes(host.MIB))
    assert host.memory()["peak_host_mb"] >= before + 60
    block.close()
    host.reset_peak_memory()
    assert host.memory()["peak_host_mb"] < before + 60


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's parent-death signal is Linux")
def test_a_child_dies_when_its_launcher_is_killed():
    with subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        child = int(launcher.stdout.readline().split()[1])
        launcher.send_signal(signal.SIGKILL)
    for _ in range(600):
        if not alive(child):
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its launcher")


def test_what_outlives_no_launcher_asks_before_it_imports_torch():
    code = "import sys, difftool.parallel.agent, difftool.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_an_absent_device_is_refused_with_a_way_out():
    import torch

    from difftool.errors import PlanError

    if torch.backends.mps.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(PlanError, match="launch.device is mps, but torch .* finds no mps device here") as error:
        current("mps")
    assert error.value.exit_code == 3 and "--device cpu" in error.value.hint


def test_a_device_that_the_environment_hides_is_missed_with_its_words(monkeypatch):
    import torch

    from difftool.errors import PlanError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    with pytest.raises(PlanError, match=r"finds no cuda device here \(CUDA_VISIBLE_DEVICES=9\)$"):
        current("cuda")


def test_last_words_are_not_cut_off_by_a_request_to_end():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("asked"))
    try:
        with host.undisturbed():
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == ["asked"]
    finally:
        signal.signal(signal.SIGTERM, before)

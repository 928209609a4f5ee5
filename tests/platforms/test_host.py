"""Host memory readings, and a worker that does not outlive its launcher."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from difftool.platforms import current, host

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
    block = np.ones(64 * host.MIB // 8)
    assert host.memory()["peak_host_mb"] >= before + 60
    del block
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

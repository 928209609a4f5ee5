"""scripts/inject_slowdown.py makes an environment whose workers sleep in every step, and nobody else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = """
import itertools, json, time
from difftool.profiling.timers import Timer

class Device:
    def synchronize(self): pass
    def mark(self): return 0

slept = []
clock = itertools.count(0, 10)  # every look at it is 10 s later
time.sleep, time.perf_counter = slept.append, clock.__next__
timer = Timer(Device())
for _ in range(3):
    timer.step()
print(json.dumps([slept, len(timer._steps), next(clock)]))
"""


@pytest.mark.parametrize(
    ("argument", "awake", "slept", "clock"),
    [
        ("difftool.worker", False, [0.5, 0.5], 50),
        ("difftool.worker", True, [], 90),  # two more looks for each wait
        ("difftool.launch.far_arm", False, [], 0),
    ],
    ids=["worker", "awake", "other"],
)
def test_a_worker_waits_a_share_of_each_step_and_others_do_not(tmp_path, monkeypatch, argument, awake, slept, clock):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from inject_slowdown import make_environment

    python = make_environment(tmp_path, 0.05, awake=awake)
    done = subprocess.run([python, "-c", STEPS, argument], capture_output=True, text=True, timeout=600)
    assert json.loads(done.stdout) == [slept, 3, clock], done.stderr


def test_it_ends_with_what_bench_ends_with(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "inject_slowdown.py", "builtin:no-such-model", "-p", "x", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == "a wait of 5 % in every step: exit code 2"

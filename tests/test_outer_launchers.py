"""Real ranks in processes that torchrun started: the run of difftool's own launcher, and the same way to fail."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from subprocess import PIPE

import psutil
import pytest
from test_multi_rank import alive
from tiny import ROOT, difftool

SHAPES = "builtin:shapes-image"
PROMPTS = ("-p", "a red circle", "-p", "a blue star", "-p", "a green ring")
SMALL = ("--height", "32", "--width", "32", "--device", "cpu")


def torchrun(folder, *arguments, temporary):
    """Starts `torchrun --nproc-per-node 2 -m difftool generate …`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "difftool"]
    return subprocess.Popen(
        [*command, "generate", SHAPES, *PROMPTS, *SMALL, "--dp-size", "2", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TMPDIR": temporary},
        stdout=PIPE,
        stderr=PIPE,
        text=True,
    )


@pytest.fixture
def temporary():
    """A temporary folder with a short path, for the socket in it."""
    with tempfile.TemporaryDirectory() as folder:
        yield folder


def media(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.png")}


@pytest.mark.slow
def test_the_ranks_of_torchrun_make_the_run_of_our_own_launcher(tmp_path, temporary):
    steps = ("--num-inference-steps", "2")
    with torchrun(tmp_path, *steps, "-o", "theirs/", "--perf-dump-path", "perf.json", temporary=temporary) as process:
        out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert sorted(out.split()) == [f"theirs/{name}" for name in sorted(media(tmp_path / "theirs"))]
    done = difftool("generate", SHAPES, *PROMPTS, *SMALL, "--dp-size", 2, *steps, "-o", "ours/", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(media(tmp_path / "ours")) == 3 and media(tmp_path / "theirs") == media(tmp_path / "ours")
    (records,) = (tmp_path / "theirs" / ".difftool").iterdir()
    journal = [json.loads(line) for line in (records / "journal.jsonl").read_text().splitlines()]
    assert sorted(line["item"] for line in journal) == [0, 1, 2]
    dump = json.loads((tmp_path / "perf.json").read_text())
    assert [(rank["rank"], rank["samples"]) for rank in dump["ranks"]] == [(0, 2), (1, 1)]
    assert err.count("perf dump: ") == 1
    assert not list(tmp_path.glob("difftool-ranks-*"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "process"])
def test_a_death_under_torchrun_ends_all_and_is_told_once(tmp_path, temporary, victim):
    endless = ("--num-inference-steps", "100000", "--json", "-o", "out/")
    with torchrun(tmp_path, *endless, temporary=temporary) as agent:
        pids, stepping = {}, set()
        while len(stepping) < 2:
            event = json.loads(agent.stdout.readline())
            stepping |= {event["rank"]} if event["event"] == "step" else set()
            pids |= {event["rank"]: event["pid"]} if event["event"] == "started" else {}
        everyone = psutil.Process(agent.pid).children(recursive=True)
        assert len(everyone) == 4
        dead = pids[1] if victim == "worker" else psutil.Process(pids[1]).ppid()
        os.kill(dead, signal.SIGKILL)
        start = time.monotonic()
        out, err = agent.communicate(timeout=900)
        assert time.monotonic() - start < 30
    assert agent.returncode != 0
    assert err.count("error: rank 1 was killed by SIGKILL, likely out of host memory in denoising of item 1") == 1
    assert json.loads(out.splitlines()[-1])["exit_code"] == 6 and "exitcode  : 6" in err
    assert not any(map(alive, everyone))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".difftool"]

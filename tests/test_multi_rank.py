"""Two real ranks: the pictures of one, the failure of either told as it is, nothing left behind, nobody listening."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import psutil
import pytest
from launch.test_run import wait_until
from tiny import ROOT, difftool, read_json

SHAPES = "builtin:shapes-image"
PROMPTS = ("a red circle", "a blue star", "a green ring", "a red square", "a blue circle")
SHORT = ("--num-inference-steps", 2)


def media(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.png")}


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """A folder with the pictures of five prompts, made by one rank in `1` and by two in `2`; the last two collide."""
    folder = tmp_path_factory.mktemp("replicas")
    lines = [{"id": f"p{i}", "prompt": prompt} for i, prompt in enumerate(PROMPTS)]
    lines += [{"id": "again", "prompt": PROMPTS[0], "seed": 42}]  # the first one once more
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for ranks in (1, 2):
        request = [SHAPES, "--prompt-file", "prompts.jsonl", "--dp-size", ranks, *SHORT, "-o", f"{ranks}/"]
        done = difftool("generate", *request, "--perf-dump-path", f"{ranks}.json", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_two_replicas_make_the_files_of_one_byte_for_byte(replicas):
    made = media(replicas / "2")
    assert len(made) == 6 and made == media(replicas / "1")


def test_the_dump_holds_the_samples_of_every_rank(replicas):
    one, two = read_json(replicas / "1.json"), read_json(replicas / "2.json")
    assert [sample["id"] for sample in two["samples"]] == [sample["id"] for sample in one["samples"]]
    assert [(rank["rank"], rank["samples"], rank["device"]) for rank in two["ranks"]] == [(0, 3, "cpu"), (1, 3, "cpu")]
    assert two["run"]["world_size"] == 2
    assert two["recipe"]["workload_sha256"] == one["recipe"]["workload_sha256"]
    busiest = max(rank["busy_ms"] for rank in two["ranks"])
    assert two["throughput"]["outputs_per_s"] == pytest.approx(6e3 / busiest)


SABOTAGE = """
import os, signal, sys
if "difftool.worker" in sys.orig_argv and os.environ.get("RANK") == "1":
    from difftool.stages.denoising import DenoisingStage
    one_step = DenoisingStage.one_step

    def fail(self, *arguments):
        if arguments[-1] == 1:
            {cause}
        return one_step(self, *arguments)

    DenoisingStage.one_step = fail
"""
CAUSES = {  # those of a status and of SIGKILL are in launch/test_ranks.py
    "raise": ("raise ValueError('the rope broke')", 1, "ValueError: the rope broke"),
    "segfault": ("os.kill(os.getpid(), signal.SIGSEGV)", 6, "rank 1 was killed by SIGSEGV"),
}


@pytest.mark.slow
@pytest.mark.parametrize("cause", CAUSES)
def test_what_fails_in_one_rank_is_told_and_ends_the_others(tmp_path, cause):
    statement, code, words = CAUSES[cause]
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE.format(cause=statement))
    request = [SHAPES, "-p", "a red circle", "-p", "a blue star", "-p", "a red ring", "--num-inference-steps", 2000]
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = difftool("generate", *request, "--dp-size", 2, "-o", "out/", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == code, done.stderr
    last = "\n".join(done.stderr.splitlines()[-40:])
    assert words in last and "denoising" in last and "item 1" in last
    assert "torch.distributed" not in last and "another rank is gone" not in last
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".difftool"]
    assert not ranks_of(tmp_path)


def ranks_of(folder: Path) -> list[psutil.Process]:
    """Workers and agents that run for `folder`."""
    return [
        process
        for process in psutil.process_iter(["cwd", "cmdline", "status"])
        if process.info["cwd"] == str(folder) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


@pytest.fixture
def endless(tmp_path):
    """A run of two ranks in the middle of their denoising: the launcher and all of its processes."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "difftool", "generate", SHAPES, "-p", "a red circle", "-p", "a blue star"]
    run = [*command, "--json", "--dp-size", "2", "--num-inference-steps", "100000", "-o", "out/"]
    with subprocess.Popen(run, cwd=tmp_path, env=env, stdout=PIPE, stderr=PIPE, text=True) as process:
        assert process.stdout is not None
        stepping = set()
        while len(stepping) < 2:
            event = json.loads(process.stdout.readline())
            stepping |= {event["rank"]} if event["event"] == "step" else set()
        yield process, [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.kill()


@pytest.mark.slow
def test_ranks_of_one_machine_listen_on_the_loopback_only_and_end_on_ctrl_c(endless, tmp_path):
    launcher, processes = endless
    assert len(processes) == 4
    listening = [c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert listening and set(listening) <= {"127.0.0.1", "::1"}
    launcher.send_signal(signal.SIGINT)
    launcher.stdout.read()
    assert launcher.wait(60) == 130
    assert not any(map(alive, processes))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".difftool"]


@pytest.mark.slow
def test_nothing_outlives_a_killed_launcher(endless):
    launcher, processes = endless
    launcher.kill()
    deadline = time.monotonic() + 10
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, processes))


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # also between two looks at it
        return False


IMMUNE = """
import os, signal, sys
if "difftool.worker" in sys.orig_argv and os.environ.get("RANK") == "1":
    from difftool.platforms import host
    from difftool.stages.denoising import DenoisingStage
    host.die_with_parent = lambda parent: None
    one_step = DenoisingStage.one_step

    def stop(self, *arguments):
        if arguments[-1] == 2:  # the third step, of the long item
            os.kill(os.getpid(), signal.SIGSTOP)
        return one_step(self, *arguments)

    DenoisingStage.one_step = stop
"""


@pytest.mark.slow
def test_a_run_of_many_ranks_is_taken_up_once_every_rank_has_ended(tmp_path, monkeypatch):
    """Rank 1 outlives its killed launcher here, in the middle of an item; on Linux it would not."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(IMMUNE)
    bad = {"prompt": "a red star", "id": "bad", "scheduler": {"config": {"base_shift": "wide"}}}
    long = {"prompt": "a blue ring", "id": "long", "num_inference_steps": 4}
    lines = [{"prompt": "a red ring", "id": "good"}, {"prompt": "a blue star", "id": "too"}, bad, long]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    size = ["--height", "32", "--width", "32", "--device", "cpu", "-s", "output.name={id}", "-o", "out/"]
    ranks = [*size, "--dp-size", "2", "--num-inference-steps", "2", "--keep-going"]
    request = ["generate", SHAPES, "--prompt-file", "prompts.jsonl", *ranks]
    paths = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    with subprocess.Popen(
        [sys.executable, "-m", "difftool", *request, "--json"],
        cwd=tmp_path, env={**os.environ, **paths}, stdout=PIPE, stderr=PIPE, text=True,
    ) as launcher:  # fmt: skip
        heard, pids = set(), {}
        while not {("item_failed", 2), ("step", 3)} <= heard:
            event = json.loads(launcher.stdout.readline())
            heard.add((event["event"], event.get("item")))
            pids |= {event["rank"]: event["pid"]} if event["event"] == "started" else {}
        rank = psutil.Process(pids[1])
        assert wait_until(lambda: rank.status() == psutil.STATUS_STOPPED)
        launcher.kill()
    assert list(tmp_path.glob("difftool-ranks-*"))  # what the launcher could not remove
    refused = difftool(*request, "--resume", cwd=tmp_path, **paths)
    assert refused.returncode == 2 and "is still going on" in refused.stderr, refused.stderr
    assert rank.is_running()
    rank.kill()
    done = difftool(*request, "--resume", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 8, done.stderr
    assert "2 items are there, 2 to make" in done.stderr
    assert "error: 1 of 4 items failed\n  | bad: TypeError" in done.stderr
    assert sorted(media(tmp_path / "out")) == ["good.png", "long.png", "too.png"]
    assert not list(tmp_path.glob("difftool-ranks-*"))

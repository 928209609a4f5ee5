"""Ranks under `nsys`: the command it gets, the report it leaves, and every end of the run that it stands in."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from launch.conftest import small_plan
from launch.test_ranks import STANDIN, TWO
from launch.test_run import gone, wait_until
from nsys.installing import install_nsys

from difftool import launch
from difftool.errors import Interrupted, OutputError, WorkerCrashed
from difftool.launch.signals import SignalWatch
from difftool.planning.plan import Degrees, ProfilePlan

ONE = Degrees(num_gpus=1, dp=1, cfg=1, ring=1, ulysses=1, tp=1, hsdp="none")
OPTIONS = ["--trace=cuda,nvtx,osrt", "--trace-fork-before-exec=true", "--cuda-graph-trace=node"]
KEEPER = (sys.executable, "-m", "difftool.parallel.keeper", "--parent", str(os.getpid()), "--")


class Recorded:
    """Stand-in ranks under a stand-in nsys."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.events = []
        self.before = descendants()

    def run(self, behaviour, *, degrees=TWO, **window):
        profile = ProfilePlan(tool="nsys", steps=5, all_stages=True, **window)
        plan = small_plan(self.folder, degrees=degrees, profile=profile)
        self.records = launch.open_records(plan)
        worker = (sys.executable, str(STANDIN), behaviour)
        return launch.run(plan, self.records, on_event=self.events.append, worker=worker)

    @property
    def file(self) -> Path:
        return self.folder / f"{self.records.name}-all_ranks.nsys-rep"

    def report(self):
        return json.loads(self.file.read_text())

    def all_gone(self):
        pids = [event.pid for event in self.events if event.event == "started"]
        return wait_until(lambda: all(map(gone, pids)) and descendants() <= self.before)


def descendants() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True) if not gone(child.pid)}


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(install_nsys(tmp_path)), prepend=os.pathsep)
    return Recorded(tmp_path / "50% out")


@pytest.mark.parametrize(("degrees", "ranks"), [(ONE, 1), (TWO, 2)])
def test_one_report_is_of_all_ranks(recorded, degrees, ranks):
    recorded.run("succeed", degrees=degrees)
    report = recorded.report()
    assert report["options"] == [
        *OPTIONS,
        "--force-overwrite=true",
        "-o",
        str(recorded.file.with_suffix("")).replace("%", "%%"),
    ]
    assert report["command"][:5] == [sys.executable, "-m", "difftool.parallel.agent", "--ranks", str(ranks)]
    assert len([event for event in recorded.events if event.event == "item_finished"]) == ranks
    assert recorded.all_gone()


def test_the_run_goes_on_when_the_time_to_record_is_over(recorded):
    recorded.run("work-a-while", delay=1, duration=1)
    assert recorded.report()["options"][4:7] == ["--delay=1", "--duration=1", "--kill=none"]
    finished = [event.rank for event in recorded.events if event.event == "item_finished"]
    assert sorted(finished) == [0, 1] and recorded.all_gone()


def test_a_report_that_takes_long_is_waited_for(recorded, monkeypatch):
    monkeypatch.setattr(sys.modules["difftool.launch.supervise"], "GRACE_S", 0.1)
    monkeypatch.setenv("NSYS_WRITES_S", "3")
    recorded.run("succeed", degrees=ONE)
    assert recorded.report() and recorded.all_gone()


def test_a_report_that_is_not_there_is_an_error_with_the_way_out(recorded):
    with pytest.raises(OutputError) as caught:
        recorded.run("succeed", delay=10_000)
    assert caught.value.message.startswith(f"nsys left no report {recorded.file}")
    log = recorded.records / "worker.log"
    assert caught.value.hint == (
        f"the run may have ended before --delay 10000; the outputs are made; nsys's log is {log}"
    )


def test_an_nsys_that_does_not_start_the_ranks_is_told_with_its_words(recorded, tmp_path):
    (tmp_path / "bin" / "nsys").write_text("#!/bin/sh\necho 'nsys: unrecognised option'\nexit 1\n")
    with pytest.raises(WorkerCrashed) as caught:
        recorded.run("succeed")
    assert "exited with status 1" in caught.value.message
    assert caught.value.message.endswith("\n  | nsys: unrecognised option")


def test_a_rank_that_dies_is_told_as_without_nsys(recorded):
    with pytest.raises(WorkerCrashed) as caught:
        recorded.run("kill@1")
    assert caught.value.message.startswith("rank 1 was killed by SIGKILL")
    assert recorded.all_gone()


@pytest.mark.parametrize("deaf", [False, True])
def test_ctrl_c_ends_nsys_and_all_it_started(recorded, monkeypatch, deaf):
    if deaf:
        monkeypatch.setenv("NSYS_DEAF", "1")
        monkeypatch.setattr(SignalWatch, "again", lambda watch: bool(asked(watch)))

    def asked(watch):
        return signal.SIGINT if any(event.event == "step" for event in recorded.events) else None

    monkeypatch.setattr(SignalWatch, "asked", property(asked))
    with pytest.raises(Interrupted):
        recorded.run("wait")
    assert recorded.all_gone()
    assert [gone(int(left.read_text())) for left in recorded.folder.glob("*.left")] == [True] * deaf


def test_the_keeper_ends_when_all_it_started_has_ended(tmp_path):
    orphan = f"(sleep 1; echo late > {tmp_path}/late) & exit 7"
    assert subprocess.run([*KEEPER, "sh", "-c", orphan]).returncode == 7
    assert (tmp_path / "late").exists()


SLOW = """
import sys, time
from difftool.parallel import keeper
start = keeper.start
keeper.start = lambda command: [start(command), time.sleep(1)][0]
sys.exit(keeper.main())
"""


def test_a_request_while_the_keeper_starts_the_command_is_passed_on(tmp_path):
    command = ["sh", "-c", f"echo ready > {tmp_path}/ready; exec sleep 60"]
    keeper = subprocess.Popen([sys.executable, "-c", SLOW, *KEEPER[3:], *command])
    assert wait_until((tmp_path / "ready").exists, 60.0)
    (left,) = psutil.Process(keeper.pid).children()
    keeper.terminate()
    assert keeper.wait(60) == 128 + signal.SIGTERM
    assert gone(left.pid)


def test_the_keeper_kills_the_deaf_at_the_second_request(tmp_path):
    deaf = f"trap '' TERM; (sleep 60) & echo ready > {tmp_path}/ready; while true; do sleep 1; done"
    keeper = subprocess.Popen([*KEEPER, "setsid", "sh", "-c", deaf])
    assert wait_until((tmp_path / "ready").exists, 60.0)
    left = psutil.Process(keeper.pid).children(recursive=True)
    keeper.terminate()
    assert not wait_until(lambda: keeper.poll() is not None, 1.0)
    keeper.terminate()
    assert keeper.wait(60) == 128 + signal.SIGKILL
    assert left and all(gone(process.pid) for process in left)


def test_the_keeper_and_all_it_keeps_end_with_the_launcher(tmp_path):
    kept = ["sh", "-c", f"setsid sleep 60 & echo ready > {tmp_path}/ready; exec sleep 60"]
    code = f"import os, subprocess; subprocess.run({[*KEEPER[:4]]!r} + [str(os.getpid()), '--', *{kept!r}])"
    launcher = subprocess.Popen([sys.executable, "-c", code])
    assert wait_until((tmp_path / "ready").exists, 60.0)
    left = psutil.Process(launcher.pid).children(recursive=True)
    launcher.kill()
    launcher.wait()
    assert len(left) == 3 and wait_until(lambda: all(gone(process.pid) for process in left), 30.0)

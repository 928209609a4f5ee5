"""Many ranks end as one worker does: one result or one error, the cause and not its consequences, and nothing left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from launch.conftest import small_plan
from launch.test_run import gone, half_written, wait_until

from difftool import launch
from difftool.errors import DifftoolError, PlanError, Stalled, WorkerCrashed
from difftool.launch.agent import Agent
from difftool.launch.events import parse_event
from difftool.launch.ranks import RankGroup
from difftool.planning.plan import Degrees

TWO = Degrees(num_gpus=2, dp=2, cfg=1, ring=1, ulysses=1, tp=1, hsdp="none")
STANDIN = Path(__file__).with_name("standin_rank.py")
PLACE = "in denoising of item blue, after step 1 of 2"


class Ranks:
    """Two stand-in ranks; what they said, and whether they are gone."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.events = []

    def run(self, behaviour, *, degrees=TWO, stall_timeout_s=600.0, launcher="auto"):
        plan = small_plan(self.folder, degrees=degrees, stall_timeout_s=stall_timeout_s, launcher=launcher)
        self.records = launch.open_records(plan)
        worker = (sys.executable, str(STANDIN), behaviour)
        return launch.run(plan, self.records, on_event=self.events.append, worker=worker)

    def said(self, event):
        return [found.rank for found in self.events if found.event == event]

    def all_gone(self):
        pids = [event.pid for event in self.events if event.event == "started"]
        assert pids
        return wait_until(lambda: all(map(gone, pids)))


@pytest.fixture
def two(tmp_path):
    return Ranks(tmp_path / "out")


def test_the_run_is_finished_when_every_rank_is(two):
    two.run("succeed")
    assert sorted(two.said("item_finished")) == [0, 1]
    assert two.said("finished") == [0]
    assert two.all_gone()


def test_the_error_a_rank_reports_of_itself_is_told_before_the_loss_of_a_peer(two):
    with pytest.raises(DifftoolError) as caught:
        two.run("error@1")
    assert caught.value.message == "internal error: ValueError: the rope broke (rank 1, denoising, item blue)"
    assert two.all_gone() and not half_written(two.folder)


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("exit-3@1", "rank 1 exited with status 3"),
        ("kill@1", "rank 1 was killed by SIGKILL, likely out of host memory"),
        ("segfault@1", "rank 1 was killed by SIGSEGV (segmentation fault)"),
    ],
)
def test_a_rank_that_dies_without_a_word_is_told_by_its_status_and_place(two, behaviour, words):
    with pytest.raises(WorkerCrashed) as caught:
        two.run(behaviour)
    assert caught.value.message == f"{words} {PLACE}\n  | last words of rank 1"
    assert two.all_gone() and not half_written(two.folder)


def test_one_rank_has_an_agent_where_torchrun_is_asked_for(two):
    one = Degrees(num_gpus=1, dp=1, cfg=1, ring=1, ulysses=1, tp=1, hsdp="none")
    two.run("succeed", degrees=one, launcher="torchrun")
    assert (two.said("item_finished"), two.said("finished")) == ([0], [0])
    assert two.all_gone()


@pytest.mark.parametrize(
    ("behaviour", "words", "stack"),
    [
        ("hang@1+work", f"no progress of rank 1 for 3 s {PLACE}", "in hang_there"),
        (
            "stop@1+work",
            f"no progress of rank 1 for 3 s {PLACE}",
            "no answer: the process has ended, or the system has",
        ),
    ],
)
def test_a_replica_that_hangs_is_told_while_the_others_work(two, behaviour, words, stack):
    with pytest.raises(Stalled) as caught:
        two.run(behaviour, stall_timeout_s=3.0)
    assert caught.value.message.startswith(f"{words}; the worker was ended\n  | rank 0:\n")
    first, second = caught.value.message.split("rank 1:\n")
    assert "in work" in first and stack in second
    assert two.all_gone() and not half_written(two.folder)


def test_the_stacks_of_all_ranks_are_written_and_the_deaf_are_killed(two, monkeypatch):
    monkeypatch.setattr("difftool.launch.child.GRACE_S", 0.2)
    plan = small_plan(two.folder, degrees=TWO)
    records = launch.open_records(plan)
    log = records / "worker.log"
    worker = (sys.executable, str(STANDIN), "deaf", str(records / "plan.json"))
    with RankGroup(Agent(worker, 2, log=log, environment=dict(os.environ)), log=log) as group:
        while len(two.said("step")) < 2:
            two.events += map(parse_event, group.read_lines(0.2))
        deadline = time.monotonic() + 60
        while log.read_text().count("in wait_deaf") < 2 and time.monotonic() < deadline:
            log.write_text("")
            group.ask_for_stacks()
    first, second = log.read_text().split("rank 1:")
    assert "rank 0:" in first and "in wait_deaf" in first and "in wait_deaf" in second
    assert two.all_gone()


LAUNCHER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from launch.test_ranks import Ranks
from difftool.errors import DifftoolError

two = Ranks(Path({folder!r}))
two.events = type("Said", (list,), {{"append": lambda self, event: print(event.event, getattr(event, "pid", ""),
                                                                        flush=True)}})()
try:
    two.run("wait")
except DifftoolError as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_ranks_end_with_their_launcher(tmp_path, number, code):
    script = LAUNCHER.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path / "out"))
    launcher = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    heard = []
    while [line.split()[0] for line in heard].count("step") < 2:
        heard.append(launcher.stdout.readline())
    pids = [int(line.split()[1]) for line in heard if line.startswith("started")]
    pids += [psutil.Process(pids[0]).ppid()]
    launcher.send_signal(number)
    assert launcher.wait(60) == code
    assert wait_until(lambda: all(map(gone, pids)))
    launcher.stdout.close()


def test_a_world_is_not_started_inside_another(two, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(PlanError, match="torchrun runs this 8 times") as caught:
        two.run("succeed")
    assert caught.value.exit_code == 3
    assert not two.events


def test_ranks_do_not_take_themselves_for_those_of_another_world(two, monkeypatch):
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("LOCAL_RANK", "7")
    two.run("succeed")
    assert sorted(two.said("started")) == [0, 1]


def test_a_rank_that_ends_while_the_launcher_is_busy_is_heard_before_it_is_missed(two, monkeypatch):
    """Else the other, which has work to do, would be ended as one that waits for it."""
    read, begun = Agent.read, set()

    def busy(agent, seconds):
        lines = read(agent, seconds)
        begun.update(rank for rank, line in lines if b'"step"' in line)
        assert len(begun) < 2 or wait_until(lambda: agent.gone(1))
        return lines

    monkeypatch.setattr(Agent, "read", busy)
    monkeypatch.setattr("difftool.launch.ranks.SETTLE_S", 0.1)
    two.run("work-a-moment@0+succeed")
    assert sorted(two.said("item_finished")) == [0, 1] and two.said("finished") == [0]


def test_a_dead_agent_ends_the_run(two):
    def kill_agent(event):
        two.heard.append(event)
        if [heard.event for heard in two.heard].count("step") == 1 and event.event == "step":
            os.kill(psutil.Process(two.heard[0].pid).ppid(), signal.SIGKILL)

    two.heard = []
    two.events = type("Killing", (list,), {"append": staticmethod(kill_agent)})()
    with pytest.raises(WorkerCrashed, match="the worker was killed by SIGKILL"):
        two.run("wait")
    assert wait_until(lambda: all(gone(event.pid) for event in two.heard if event.event == "started"))

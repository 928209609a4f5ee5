"""A worker that stays: one process for plan after plan, each with its own records; a new process where one is due."""

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from launch.conftest import STANDIN, small_plan
from launch.test_ranks import STANDIN as STANDIN_RANK
from launch.test_ranks import TWO
from launch.test_run import gone, half_written, wait_until

from difftool import launch
from difftool.errors import OutOfMemoryError, Stalled, WorkerCrashed
from difftool.launch.child import Child
from difftool.launch.living import LivingWorker
from difftool.launch.signals import SignalWatch

PLACE = "in denoising of item red, after step 1 of 2"


class House:
    """Makes the small plan with one living stand-in, and keeps what was heard of the last run."""

    def __init__(self, folder: Path, behaviours: str, script: Path = STANDIN):
        self.folder = folder
        self.living = LivingWorker((sys.executable, str(script), behaviours))
        self.pids: list[int] = []

    def make(self, number: int, **changes) -> launch.RunResult:
        plan = small_plan(self.folder / str(number), **changes)
        self.records = launch.open_records(plan)
        self.events = []
        return launch.supervise(plan, self.records, hire=self.living.hire, watch=SignalWatch(), on_event=self.hear)

    def hear(self, event) -> None:
        self.events.append(event)
        if event.event == "started":
            self.pids.append(event.pid)


@pytest.fixture
def house(tmp_path):
    with contextlib.ExitStack() as ends:

        def build(behaviours: str, script: Path = STANDIN) -> House:
            built = House(tmp_path, behaviours, script)
            ends.callback(built.living.stop)
            return built

        yield build


def test_one_process_makes_plan_after_plan_each_with_its_own_records_and_log(house):
    one = house("succeed")
    for number in (1, 2):
        result = one.make(number)
        assert [media.path.name for media in result.media] == ["red.png", "blue.png"]
        assert result.perf == (one.records / "perf.json").absolute()
        assert result.log.read_text() == f"makes {one.records / 'plan.json'}\n"
        assert len((one.records / "journal.jsonl").read_text().splitlines()) == 2
    assert "load_started" not in [event.event for event in one.events]
    assert len(one.pids) == 1 and not gone(one.pids[0])
    one.living.stop()
    assert gone(one.pids[0])


def test_after_a_crash_the_next_plan_gets_a_new_process(house):
    one = house("succeed,kill")
    one.make(1)
    with pytest.raises(WorkerCrashed) as caught:
        one.make(2)
    words = f"makes {one.records / 'plan.json'}\n  | last words of the worker"
    assert caught.value.message == f"the worker was killed by SIGKILL, likely out of host memory {PLACE}\n  | {words}"
    assert not half_written(one.folder)
    assert len(one.make(3).media) == 2
    assert len(one.pids) == 2 and gone(one.pids[0])


def test_a_process_that_reports_a_failure_is_not_used_again(house):
    one = house("memory")
    for number in (1, 2):
        with pytest.raises(OutOfMemoryError):
            one.make(number)
    assert len(one.pids) == 2 and all(map(gone, one.pids))


def test_a_stalled_process_is_ended_with_its_stacks_shown(house):
    one = house("succeed,hang")
    one.make(1)
    with pytest.raises(Stalled, match="in hang_in_the_denoiser"):
        one.make(2, stall_timeout_s=1.0)
    assert gone(one.pids[0])


@pytest.mark.parametrize("told", ["in time", "late"])
def test_a_process_that_died_between_two_plans_is_replaced(house, told, monkeypatch):
    one = house("succeed")
    one.make(1)
    os.kill(one.pids[0], signal.SIGKILL)
    assert wait_until(lambda: gone(one.pids[0]))
    if told == "late":  # as it is while a thread of the dead process has not ended yet
        monkeypatch.setattr(Child, "ready", lambda worker: True)
    assert len(one.make(2).media) == 2
    assert len(one.pids) == 2


@pytest.mark.parametrize("changes", [{"threads": 3}, {"stages": {"denoising": {"precision": "bf16"}}}], ids=str)
def test_a_plan_that_loads_something_else_gets_a_new_process(house, changes):
    one = house("succeed")
    one.make(1)
    one.make(2, **changes)
    assert len(one.pids) == 2 and gone(one.pids[0])


def test_a_process_outlives_the_thread_that_asked_for_it(house):
    one = house("succeed")
    for number in (1, 2):
        thread = threading.Thread(target=one.make, args=[number])
        thread.start()
        thread.join()
    one.make(3)
    assert len(one.pids) == 1 and not gone(one.pids[0])


def test_an_error_of_the_listener_ends_the_process(house):
    one = house("succeed")
    one.make(1)

    def refuse(event):
        raise BrokenPipeError

    one.hear = refuse
    with pytest.raises(BrokenPipeError):
        one.make(2)
    assert gone(one.pids[0])


def test_a_command_that_does_not_exist_is_told_to_the_caller(tmp_path):
    house = House(tmp_path, "succeed")
    house.living = LivingWorker((str(tmp_path / "nowhere"),))
    with pytest.raises(FileNotFoundError):
        house.make(1)


def test_ranks_stay_too(house):
    two = house("succeed", STANDIN_RANK)
    for number in (1, 2):
        two.make(number, degrees=TWO)
        assert sorted(event.rank for event in two.events if event.event == "item_finished") == [0, 1]
        assert [event.event for event in two.events].count("finished") == 1
    assert len(two.pids) == 2 and not any(map(gone, two.pids))
    os.kill(two.pids[1], signal.SIGKILL)
    assert wait_until(lambda: all(map(gone, two.pids)))
    two.make(3, degrees=TWO)
    assert len(two.pids) == 4
    two.living.stop()
    assert all(map(gone, two.pids))

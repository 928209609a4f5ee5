"""Who is at it when, and how long a race goes on: with arms that only say what they are told to."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from report.dumps import SAMPLE, dump

from difftool.errors import OutOfMemoryError, WorkerCrashed
from difftool.launch.race import Race, Schedule, Watcher
from difftool.report.perf import read_perf


@dataclass
class Track:
    """What happened, in order, and a clock that goes on by `turn_s` a turn."""

    turn_s: float = 1.0
    now: float = 0.0
    heard: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def said(self, kind: str) -> list[str]:
        return [line.removeprefix(f"{kind} ") for line in self.heard if line.startswith(f"{kind} ")]


class Runner:
    """An arm whose turns take `total_ms`; `ends` is raised by the turn that loads it beside others."""

    def __init__(
        self, track: Track, name: str, folder: Path, *, total_ms: float = 130.0, ends: Exception | None = None
    ):
        self.name, self.records = name, folder / name
        self.records.mkdir()
        self._track, self._total_ms, self._ends = track, total_ms, ends

    def make(self, turn, hear):
        if self._ends is not None:
            error, self._ends = self._ends, None
            raise error
        self._track.now += self._track.turn_s
        self._track.heard.append(f"turn {self.name}{turn.repeat}")
        if turn.warmup:
            self._track.heard.append(f"warmup {self.name}{turn.warmup}")
        return dump(samples=[{**SAMPLE, "repeat": turn.repeat, "total_ms": self._total_ms}])

    def rest(self):
        self._track.heard.append(f"rest {self.name}")


@pytest.fixture
def track():
    return Track()


def start(track, arms, schedule, *, free_mb=10_000.0):
    def turn(told):
        track.heard.append(f"told {told.arm}{told.round}")

    watcher = Watcher(event=lambda arm, event: None, turn=turn, note=track.notes.append)
    return Race(arms, schedule, watcher, seconds=lambda: track.now, free_mb=lambda: free_mb)


def pair(track, folder, **second):
    return [Runner(track, "A", folder), Runner(track, "B", folder, **second)]


def test_arms_warm_up_and_then_take_turns_there_and_back_again(track, tmp_path):
    race = start(track, pair(track, tmp_path), Schedule(4, 1, 1e9))
    race.run(lambda: True)
    assert track.said("turn") == ["A0", "B0", "A1", "B1", "B2", "A2", "A3", "B3", "B4", "A4"]
    assert track.said("told") == ["A0", "B0", "A1", "B1", "B2", "A2", "A3", "B3", "B4", "A4"]
    assert track.said("rest") == ["A", "B"] and race.order == "ABBA"


def test_the_last_warm_up_is_the_start_that_writes_the_files(track, tmp_path):
    race = start(track, pair(track, tmp_path), Schedule(2, 3, 1e9))
    race.run(lambda: True)
    assert track.said("warmup") == ["A2", "B2"]
    paths = race.write_dumps()
    assert paths == [tmp_path / "A" / "perf.json", tmp_path / "B" / "perf.json"]
    assert [(sample.repeat, bool(sample.outputs)) for sample in read_perf(paths[0]).samples] == [(1, True), (2, True)]


def test_without_warm_up_the_first_turn_counts(track, tmp_path):
    race = start(track, pair(track, tmp_path), Schedule(2, 0, 1e9))
    race.run(lambda: True)
    assert track.said("turn") == ["A0", "B0", "B1", "A1"]
    assert track.said("told") == ["A1", "B1", "B2", "A2"]


def test_an_undecided_race_goes_on_to_three_times_the_repeats(track, tmp_path):
    asked = []
    race = start(track, pair(track, tmp_path), Schedule(8, 1, 1e9))
    race.run(lambda: asked.append(len(track.said("turn")) // 2 - 1))
    assert asked == [8, 12, 16, 20, 24]


def test_a_decided_race_ends_at_that_look(track, tmp_path):
    answers = iter([False, True])
    race = start(track, pair(track, tmp_path), Schedule(5, 1, 1e9))
    race.run(lambda: next(answers))
    assert len(read_perf(race.write_dumps()[0]).samples) == 8


def test_one_arm_alone_is_measured_as_often_as_asked(track, tmp_path):
    race = start(track, [Runner(track, "A", tmp_path)], Schedule(3, 1, 1e9))
    race.run(lambda: False)
    assert track.said("turn") == ["A0", "A1", "A2", "A3"]
    assert read_perf(race.write_dumps()[0]).measure.order == "sequential"


def test_no_round_starts_that_would_end_too_late(track, tmp_path):
    # 2 s to warm up, 2 s a round: the fourth round would end at 10 s
    race = start(track, pair(track, tmp_path), Schedule(8, 1, 9.0))
    race.run(lambda: False)
    assert track.said("turn")[-1] == "B3" and track.notes == ["--max-time is up after 3 rounds"]


def test_however_short_the_time_there_is_one_round(track, tmp_path):
    race = start(track, pair(track, tmp_path), Schedule(8, 1, 0.1))
    race.run(lambda: False)
    assert track.said("turn") == ["A0", "B0", "A1", "B1"]


SAID = "arm B does not fit into memory beside A: the arms ran one after the other"


@pytest.mark.parametrize("too_small", ["the worker says so", "the host has less than an arm takes"])
def test_arms_that_do_not_fit_beside_each_other_run_one_after_the_other(track, tmp_path, too_small):
    ends = OutOfMemoryError("no room") if too_small == "the worker says so" else None
    free_mb = 10_000.0 if ends else 299.0  # an arm's peak is 300 MiB
    race = start(track, pair(track, tmp_path, ends=ends), Schedule(2, 1, 1e9), free_mb=free_mb)
    race.run(lambda: True)
    assert [line for line in track.heard if not line.startswith("told")] == [
        *("turn A0", "rest A", "rest B"),
        *("turn A0", "turn A1", "turn A2", "rest A", "turn B0", "turn B1", "turn B2", "rest B", "rest A", "rest B"),
    ]
    assert track.notes == [f"W-NOT-INTERLEAVED: {SAID}"]
    for path in race.write_dumps():
        made = read_perf(path)
        assert made.measure.order == "sequential" and len(made.samples) == 2
        assert [(warn.code, warn.message) for warn in made.warnings] == [("W-NOT-INTERLEAVED", SAID)]


def test_an_arm_that_does_not_fit_alone_is_an_error(track, tmp_path):
    arms = [Runner(track, "A", tmp_path, ends=OutOfMemoryError("no room")), Runner(track, "B", tmp_path)]
    with pytest.raises(OutOfMemoryError) as caught:
        start(track, arms, Schedule(2, 1, 1e9)).run(lambda: True)
    assert caught.value.message == "arm A: no room"


def test_a_failure_names_its_arm_and_ends_every_worker(track, tmp_path):
    with pytest.raises(WorkerCrashed) as caught:
        start(track, pair(track, tmp_path, ends=WorkerCrashed("killed")), Schedule(2, 1, 1e9)).run(lambda: True)
    assert caught.value.message == "arm B: killed" and track.said("rest") == ["A", "B"]


def test_time_is_shared_where_arms_run_one_after_the_other(track, tmp_path):
    arms = pair(track, tmp_path, ends=OutOfMemoryError("no room"))
    race = start(track, arms, Schedule(8, 1, 10.0))
    race.run(lambda: False)
    counts = [len(read_perf(path).samples) for path in race.write_dumps()]
    assert counts == [4, 4]  # 1 s was spent before it was known, then 5 s each with a warm-up of 1 s
    assert track.notes[1:] == [f"--max-time is up for arm {name} after 4 rounds" for name in "AB"]

"""A race: arms take turns, there and back again, until what they show is decided or the time is up.

With two arms the order is A B B A A B B A …: what drifts slowly, such as heat or other load, falls on both alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from difftool.errors import DifftoolError, OutOfMemoryError
from difftool.launch.arm import Arm, Turn
from difftool.launch.events import Event
from difftool.launch.records import PERF_FILE
from difftool.report.merge import Order, merge_turns
from difftool.report.perf import PerfDump, Warn, write_perf

MOST_TIMES = 3  # the repeats that were asked for: an undecided race ends there
NOT_INTERLEAVED = "W-NOT-INTERLEAVED"


@dataclass(frozen=True)
class Schedule:
    """`repeats` of every arm before the first look, after `warmup` runs that are not measured; seconds at most."""

    repeats: int
    warmup: int
    max_time_s: float

    def looks(self, arms: int) -> list[int]:
        """After how many rounds the verdicts are looked at: once where there is nothing to compare.

        Later ones come after an even number, when every arm was as often early as late.
        """
        first, most = self.repeats, MOST_TIMES * self.repeats
        between = _even(max(2, first // 2))
        return [first, *(range(_even(first) + between, most + 1, between) if arms > 1 else ())]


def _rounds(count: int) -> str:
    return f"{count} round{'s' * (count != 1)}"


def _even(count: int) -> int:
    return count + count % 2


@dataclass
class Lane:
    """What an arm has measured so far. `opening` is the start that loaded its model."""

    arm: Arm
    opening: PerfDump | None = None
    turns: list[PerfDump] = field(default_factory=list)


@dataclass(frozen=True)
class Told:
    """One turn is over: whose, in which round (0: the warm-up), and the time of its items, ms."""

    arm: str
    round: int
    total_ms: float


@dataclass
class Watcher:
    """Whom a race tells: of every event, with the arm's name; of every turn; of what is not as it was asked."""

    event: Callable[[str, Event], None]
    turn: Callable[[Told], None]
    note: Callable[[str], None]


class Race:
    """Arms on their way. `seconds` is a clock; `free_mb` says how much memory the host has left, in MiB."""

    def __init__(
        self,
        arms: Sequence[Arm],
        schedule: Schedule,
        watcher: Watcher,
        *,
        seconds: Callable[[], float],
        free_mb: Callable[[], float],
    ):
        self.order: Order = "ABBA" if len(arms) > 1 else "sequential"
        self._lanes = [Lane(arm) for arm in arms]
        self._schedule = schedule
        self._watcher = watcher
        self._seconds = seconds
        self._free_mb = free_mb
        self._warnings: list[Warn] = []

    def run(self, decided: Callable[[], bool]) -> None:
        """Makes all turns. `decided()` says, at a look, whether more of them would tell nothing new.

        Raises what a turn can end with, with the name of its arm. Every worker has ended then.
        """
        start = self._seconds()
        try:
            if self._all_open():
                self._take_turns(decided, start)
            else:
                self._one_after_the_other(start)
        finally:
            for lane in self._lanes:
                lane.arm.rest()

    def write_dumps(self) -> list[Path]:
        """Writes what every arm has measured so far to its records; the paths, in the order of the arms."""
        for lane in self._lanes:
            assert lane.opening is not None, lane.arm.name
            dump = merge_turns(lane.opening, lane.turns, order=self.order, notes=self._warnings)
            write_perf(lane.arm.records / PERF_FILE, dump)
        return [lane.arm.records / PERF_FILE for lane in self._lanes]

    def _all_open(self) -> bool:
        """Loads and warms up every arm. False where they do not fit beside each other: then nothing is loaded."""
        needed = 0.0
        for position, lane in enumerate(self._lanes):
            fits = not position or self._free_mb() > needed
            try:
                if fits:
                    self._open(lane)
            except OutOfMemoryError:
                if not position:
                    raise
                fits = False
            if not fits:
                self._give_up_residence(lane)
                return False
            assert lane.opening is not None
            needed = max(needed, *(sample.peak_host_memory_mb for sample in lane.opening.samples))
        return True

    def _give_up_residence(self, lane: Lane) -> None:
        others = ", ".join(other.arm.name for other in self._lanes[: self._lanes.index(lane)])
        message = f"arm {lane.arm.name} does not fit into memory beside {others}: the arms ran one after the other"
        self._warnings.append(Warn(code=NOT_INTERLEAVED, message=message))
        self._watcher.note(f"{NOT_INTERLEAVED}: {message}")
        self.order = "sequential"
        for other in self._lanes:
            other.arm.rest()
            other.opening, other.turns = None, []

    def _open(self, lane: Lane) -> None:
        """Loads the arm; what it makes then is the last warm-up or, where there is none, its first sample."""
        warmup = self._schedule.warmup
        lane.opening = self._make(lane, Turn(repeat=0, warmup=max(0, warmup - 1)), counted=not warmup)
        if not warmup:
            lane.turns.append(lane.opening)

    def _take_turns(self, decided: Callable[[], bool], start: float) -> None:
        looks = self._schedule.looks(len(self._lanes))
        opened, before = self._seconds(), len(self._lanes[0].turns)
        while True:
            done = len(self._lanes[0].turns)
            if done in looks and (decided() or done == looks[-1]):
                return
            if done > before:
                a_round = (self._seconds() - opened) / (done - before)
                if self._seconds() + a_round - start > self._schedule.max_time_s:
                    return self._watcher.note(f"--max-time is up after {_rounds(done)}")
            for lane in self._lanes if done % 2 == 0 else reversed(self._lanes):
                self._next(lane)

    def _one_after_the_other(self, start: float) -> None:
        share = self._schedule.max_time_s / len(self._lanes)
        for number, lane in enumerate(self._lanes, 1):
            self._open(lane)
            while len(lane.turns) < self._schedule.repeats:
                if lane.turns and self._seconds() - start > share * number:
                    self._watcher.note(f"--max-time is up for arm {lane.arm.name} after {_rounds(len(lane.turns))}")
                    break
                self._next(lane)
            lane.arm.rest()

    def _next(self, lane: Lane) -> None:
        assert lane.opening is not None
        repeat = len(lane.turns) + (self._schedule.warmup > 0)  # the opening is number 0
        lane.turns.append(self._make(lane, Turn(repeat=repeat), counted=True))

    def _make(self, lane: Lane, turn: Turn, *, counted: bool) -> PerfDump:
        name = lane.arm.name
        try:
            dump = lane.arm.make(turn, partial(self._watcher.event, name))
        except DifftoolError as error:
            if len(self._lanes) > 1:
                error.message = f"arm {name}: {error.message}"
            raise
        number = len(lane.turns) + 1 if counted else 0
        self._watcher.turn(Told(name, number, sum(sample.total_ms for sample in dump.samples)))
        return dump

"""What a person, or a program, sees while arms race: a line a turn, or every event; the report comes after."""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from difftool.cli.progress import HEARTBEAT_S, Mode, make_bars
from difftool.launch.events import (
    ComponentLoaded,
    Event,
    ItemStarted,
    LoadStarted,
    StageStarted,
    Step,
    TurnFinished,
)

if TYPE_CHECKING:
    from rich.progress import TaskID

    from difftool.launch.race import Told


def make_turns(mode: Mode, repeats: int) -> "Turns":
    """Who is told of a race of `repeats` rounds or, while it is undecided, more."""
    kinds: dict[Mode, Callable[[], Turns]] = {
        "json": JsonTurns,
        "quiet": Turns,
        "plain": PlainTurns,
        "live": lambda: LiveTurns(repeats),
    }
    return kinds[mode]()


class Turns:
    """A context manager that a race tells of its way. This one keeps quiet."""

    def __enter__(self) -> "Turns":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def event(self, arm: str, event: Event) -> None:
        """Any event of any arm."""

    def turn(self, told: "Told") -> None:
        """One turn is over."""

    def note(self, text: str) -> None:
        """What is not as it was asked."""


class JsonTurns(Turns):
    """Every event on stdout, one object a line, and a note on stderr."""

    def event(self, arm: str, event: Event) -> None:
        print(event.model_copy(update={"arm": arm}).model_dump_json(exclude_none=True), flush=True)

    def turn(self, told: "Told") -> None:
        finished = TurnFinished(arm=told.arm, round=told.round, total_ms=told.total_ms)
        print(finished.model_dump_json(exclude_none=True), flush=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class PlainTurns(Turns):
    """A line a turn on stderr, and one whenever nothing was said for a while."""

    def __init__(self, heartbeat_s: float = HEARTBEAT_S):
        self._heartbeat_s = heartbeat_s
        self._now = "the first arm starts"
        self._said = time.monotonic()
        self._over = threading.Event()
        self._clock = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Turns":
        self._clock.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._clock.join()

    def event(self, arm: str, event: Event) -> None:
        doing = describe(event)
        if doing is not None:
            self._now = f"{arm}: {doing}"

    def turn(self, told: "Told") -> None:
        self._say(line(told))

    def note(self, text: str) -> None:
        self._say(text)

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        self._said = time.monotonic()

    def _beat(self) -> None:
        while not self._over.wait(self._heartbeat_s / 10):
            if time.monotonic() - self._said >= 0.9 * self._heartbeat_s:
                self._say(self._now)


class LiveTurns(Turns):
    """The same lines above two bars, of the rounds and of the arm whose turn it is, which go when the race is over."""

    def __init__(self, repeats: int):
        self._bars = make_bars(redirect_stderr=False)
        self._repeats = repeats
        self._rounds = self._bars.add_task("rounds", total=repeats)
        self._arm: TaskID = self._bars.add_task("the first arm starts", total=None)

    def __enter__(self) -> "Turns":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def event(self, arm: str, event: Event) -> None:
        if isinstance(event, Step):
            self._bars.update(self._arm, total=event.steps, completed=event.step + 1)
        elif (doing := describe(event)) is not None:
            self._bars.remove_task(self._arm)  # a task that had a total keeps it
            self._arm = self._bars.add_task(f"{arm}: {doing}", total=None)

    def turn(self, told: "Told") -> None:
        self.note(line(told))
        self._bars.update(self._rounds, completed=told.round, total=max(self._repeats, told.round))

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)


def describe(event: Event) -> str | None:
    """What an arm does from this event on; None where that is nothing new."""
    if isinstance(event, LoadStarted | ComponentLoaded):
        return "loads the model"
    if isinstance(event, ItemStarted):
        return "warms up" if event.phase == "warmup" else event.id
    if isinstance(event, StageStarted):
        return event.stage
    return f"denoising, step {event.step + 1} of {event.steps}" if isinstance(event, Step) else None


def line(told: "Told") -> str:
    """One turn in words."""
    return f"{f'round {told.round}' if told.round else 'warm-up'}  {told.arm}  {told.total_ms:.1f} ms"

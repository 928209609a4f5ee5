"""What a person, or a program, sees while a run goes on: media paths and events on stdout, the rest on stderr."""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol

from difftool.launch.events import (
    ComponentLoaded,
    Event,
    ItemFailed,
    ItemFinished,
    ItemStarted,
    Loaded,
    LoadStarted,
    Output,
    Perf,
    SaveStarted,
    StageFinished,
    StageStarted,
    Step,
)

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

HEARTBEAT_S = 30.0
WORTH_A_LINE_MS = 10.0  # a stage below this is only in the table
Mode = Literal["json", "quiet", "plain", "live"]


class Listener(Protocol):
    """A context manager that takes every event."""

    def take(self, event: Event) -> None: ...

    def __enter__(self) -> "Listener": ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def choose_mode(*, as_json: bool, quiet: bool, verbose: bool) -> Mode:
    """Live bars only on a terminal that can move its cursor, and not while the worker's log scrolls there."""
    if as_json:
        return "json"
    if quiet:
        return "quiet"
    live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not verbose
    return "live" if live else "plain"


def make_listener(mode: Mode) -> Listener:
    kinds: dict[Mode, Callable[[], Listener]] = {
        "json": JsonLines,
        "quiet": Quiet,
        "plain": PlainLines,
        "live": LiveBars,
    }
    return kinds[mode]()


def shown(path: str | Path) -> str:
    """`path` from the current folder where it lies below it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)


class Quiet:
    """Media paths on stdout as they are finished, and nothing else."""

    def take(self, event: Event) -> None:
        if isinstance(event, Output):
            print(shown(event.path), flush=True)

    def __enter__(self) -> "Listener":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return


class JsonLines(Quiet):
    """Every event on stdout, one object a line."""

    def take(self, event: Event) -> None:
        print(event.model_dump_json(exclude_none=True), flush=True)


class PlainLines(Quiet):
    """A line per stage on stderr, and one whenever nothing was said for a while."""

    def __init__(self, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._heartbeat_s = heartbeat_s
        self._now = "the worker starts"
        self._prefixes: dict[int | None, str] = {}  # by rank
        self._said = self._changed = time.monotonic()
        self._over = threading.Event()
        self._clock = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Listener":
        self._clock.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._clock.join()

    def take(self, event: Event) -> None:
        self._changed = time.monotonic()
        if isinstance(event, LoadStarted | ComponentLoaded | Loaded):
            self._take_load(event)
        elif isinstance(event, ItemStarted):
            warmup = "warm-up " if event.phase == "warmup" else ""
            prefix = self._prefixes[event.rank] = f"[{event.item + 1}/{event.items}] {warmup}"
            self._say(f"{prefix}{event.id}, seed {event.seed}: {one_line(event.prompt)}")
        elif isinstance(event, ItemFailed):
            prefix = self._prefixes.get(event.rank, "")
            self._say(f"{prefix}{event.item_id} failed: {event.kind}: {one_line(event.message)}")
        elif isinstance(event, StageStarted | SaveStarted | Step | StageFinished):
            self._take_stage(event, self._prefixes.get(event.rank, ""))
        super().take(event)

    def _take_load(self, event: LoadStarted | ComponentLoaded | Loaded) -> None:
        if not speaks_for_all(event):
            return
        if isinstance(event, LoadStarted):
            self._now = "loads the model"
        elif isinstance(event, ComponentLoaded):
            self._say(f"loads {event.name} {event.detail}".rstrip() + f" in {event.seconds:.1f} s")
        else:
            self._say(f"loaded in {event.seconds:.1f} s")

    def _take_stage(self, event: StageStarted | SaveStarted | Step | StageFinished, prefix: str) -> None:
        if isinstance(event, Step):
            self._now = f"{prefix}denoising, step {event.step + 1} of {event.steps}"
        elif not isinstance(event, StageFinished):
            self._now = f"{prefix}{event.stage}"
        elif event.ms >= WORTH_A_LINE_MS:
            self._say(f"{prefix}{event.stage} {event.ms:.1f} ms")

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        self._said = time.monotonic()

    def _beat(self) -> None:
        while not self._over.wait(self._heartbeat_s / 10):
            if time.monotonic() - self._said >= 0.9 * self._heartbeat_s:
                silence = time.monotonic() - self._changed
                since = f": no news for {silence:.0f} s" if silence >= 1 else ""
                self._say(f"{self._now}{since}")


def make_bars(*, redirect_stderr: bool = True) -> "Progress":
    """Bars on stderr with counts and times, which go when they are stopped."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        redirect_stdout=False,
        redirect_stderr=redirect_stderr,
        transient=True,
    )


class LiveBars:
    """Bars on the terminal: the items of all ranks, and the steps of the first one's stage.

    Media paths follow when the bars are gone.
    """

    def __init__(self) -> None:
        self._bars = make_bars()
        self._items: TaskID | None = None
        self._stage = self._bars.add_task("starts the worker", total=None)
        self._media: list[str] = []
        self._done: set[int] = set()  # items of this repeat
        self._kept: set[int] = set()  # items of an earlier start
        self._round: tuple[str, int] | None = None

    def __enter__(self) -> "Listener":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
        for path in self._media:
            print(shown(path), flush=True)

    def take(self, event: Event) -> None:
        if isinstance(event, Output):
            self._media.append(event.path)
            if event.kept:
                self._kept.add(event.item)
        elif isinstance(event, ItemFinished | ItemFailed):
            self._done.add(event.item)
            if self._items is not None:
                self._bars.update(self._items, completed=len(self._done | self._kept))
        elif speaks_for_all(event):
            self._take_first(event)

    def _take_first(self, event: Event) -> None:
        if isinstance(event, LoadStarted):
            self._show("loads the model")
        elif isinstance(event, ComponentLoaded):
            self._show(f"loads the model: {event.name} {event.detail}".rstrip())
        elif isinstance(event, ItemStarted):
            self._start_item(event)
        elif isinstance(event, StageStarted | SaveStarted):
            self._show(event.stage)
        elif isinstance(event, Step):
            self._bars.update(self._stage, total=event.steps, completed=event.step + 1)
        elif isinstance(event, Perf):
            self._show("ends the worker")

    def _show(self, words: str) -> None:
        self._bars.remove_task(self._stage)  # a task that had a total keeps it
        self._stage = self._bars.add_task(words, total=None)

    def _start_item(self, event: ItemStarted) -> None:
        words = f"{'warm-up' if event.phase == 'warmup' else event.id}: {one_line(event.prompt)}"
        if self._round != (event.phase, event.sample):
            self._round, self._done = (event.phase, event.sample), set()
        if self._items is None:
            self._items = self._bars.add_task(words, total=event.items)
        self._bars.update(self._items, description=words, completed=len(self._done | self._kept))


def speaks_for_all(event: Event) -> bool:
    """Whether it comes from the only or the first of many ranks, which do the same thing at the same time."""
    return not event.rank


def one_line(prompt: str, width: int = 60) -> str:
    """A prompt cut to fit a line."""
    words = " ".join(prompt.split())
    return words if len(words) <= width else words[: width - 1] + "…"

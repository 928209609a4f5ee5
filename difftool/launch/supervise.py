"""Runs a plan: starts the worker, follows its events, and turns every way it can end into a result or one error."""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from difftool.files import TEMPORARY
from difftool.launch.child import GRACE_S, WORKER, Child
from difftool.launch.environment import worker_environment
from difftool.launch.events import Error, Event, parse_event
from difftool.launch.failure import crash_event, failure, interrupt_event, protocol_event, stall_event
from difftool.launch.log import LogEcho, size, tail
from difftool.launch.ranks import RankGroup
from difftool.launch.records import LOG_FILE, PLAN_FILE
from difftool.launch.signals import SignalWatch
from difftool.launch.state import Media, RunState
from difftool.planning.plan import Plan

TICK_S = 0.2  # how soon a signal or a death is noticed
STACKS_S = 2.0  # how long a stalled worker has to write its stacks
STACK_LINES = 80
LEFTOVERS = f".*{TEMPORARY}"  # what a worker that was killed was writing


@dataclass(frozen=True)
class RunResult:
    """What a run left: the media in the order they were finished, the perf dump, and the worker's log."""

    media: tuple[Media, ...]
    perf: Path | None
    log: Path


def run(
    plan: Plan,
    records: Path,
    *,
    on_event: Callable[[Event], None],
    verbose: bool = False,
    worker: Sequence[str] = WORKER,
) -> RunResult:
    """Runs `records/plan.json`, which is `plan`, in a worker process; writes only `records/worker.log`.

    `on_event` gets every event but `error`, which is raised as the class it names. `verbose` copies the log to stderr.
    Raises what the worker reports, WorkerCrashed, Stalled, Interrupted (Terminated for SIGTERM), OutputError.
    """
    log = records / LOG_FILE
    watch = SignalWatch()
    follower = _Follower(on_event, LogEcho(log) if verbose else None)
    state = follower.state
    ranks = plan.degrees.num_gpus
    start = Child if ranks == 1 else partial(RankGroup, ranks=ranks)
    environment = worker_environment(os.environ, threads=plan.threads, offline=plan.model.builtin)
    try:
        with watch, start(worker, records / PLAN_FILE, log=log, environment=environment, hurry=watch.again) as child:
            lost = _follow(child, follower, watch, stall_timeout_s=plan.stall_timeout_s, log=log)
    finally:
        follower.copy_log()
        if not state.finished:
            _remove_leftovers(Path(plan.output.dir), since=records / PLAN_FILE)
    if lost:
        raise failure(lost, log)
    return RunResult(tuple(state.media), state.perf, log)


class _Follower:
    """Takes in what the worker says: its events and, where asked for, its log."""

    def __init__(self, on_event: Callable[[Event], None], echo: LogEcho | None):
        self.state = RunState()
        self._ranks: dict[int, RunState] = {}
        self._on_event = on_event
        self._echo = echo

    def of_rank(self, rank: int | None) -> RunState:
        """What one rank of many has said; without a rank, all of it."""
        return self.state if rank is None else self._ranks.setdefault(rank, RunState(rank))

    def take(self, event: Event) -> None:
        self.state.apply(event)
        if event.rank is not None:
            self.of_rank(event.rank).apply(event)
        if not isinstance(event, Error):
            self._on_event(event)

    def copy_log(self) -> None:
        if self._echo:
            self._echo.copy()


def _follow(
    child: Child | RankGroup, follower: _Follower, watch: SignalWatch, *, stall_timeout_s: float, log: Path
) -> Error | None:
    """Follows the worker to its end; the failure, if it is one."""
    state = follower.state
    heard = time.monotonic()
    while not state.over:
        status = child.status()  # before reading: what a worker wrote before it died is read
        for line in child.read_lines(TICK_S):
            heard = time.monotonic()
            try:
                event = parse_event(line)
            except ValueError as error:
                return protocol_event(state, line, error)
            follower.take(event)
        follower.copy_log()
        if state.over:
            break
        if watch.received:
            return interrupt_event(state, watch.received[0])
        if status is not None:
            return crash_event(follower.of_rank(child.rank), status, log)
        if time.monotonic() - heard > stall_timeout_s:
            return stall_event(state, stall_timeout_s, _stacks(child, log), log)
    child.wait(GRACE_S)
    return state.error


def _stacks(child: Child | RankGroup, log: Path) -> str:
    """What the worker writes to its log when asked where it is."""
    start = size(log)
    child.ask_for_stacks()
    child.wait(STACKS_S)
    return tail(log, STACK_LINES, start=start)


def _remove_leftovers(folder: Path, *, since: Path) -> None:
    """Half-written files younger than `since`; older ones belong to another run, and may still be growing."""
    with contextlib.suppress(OSError):  # a folder that vanished holds none
        start = since.stat().st_mtime_ns
        for path in folder.rglob(LEFTOVERS):
            if path.stat().st_mtime_ns >= start:
                path.unlink(missing_ok=True)

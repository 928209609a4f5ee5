"""Runs a plan: starts the worker, follows its events, and turns every way it can end into a result or one error."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from difftool.files import remove_temporaries
from difftool.launch.child import GRACE_S, WORKER, Child
from difftool.launch.environment import worker_environment
from difftool.launch.events import Error, Event, Output, parse_event
from difftool.launch.failure import crash_event, failure, interrupt_event, items_failed, protocol_event, stall_event
from difftool.launch.journal import Journal
from difftool.launch.log import LogEcho, size, tail
from difftool.launch.outside import check_alone
from difftool.launch.ranks import RankGroup
from difftool.launch.records import LOG_FILE, PLAN_FILE, read_todo
from difftool.launch.signals import SignalWatch
from difftool.launch.state import Media, RunState
from difftool.planning.plan import Plan
from difftool.planning.todo import Todo

TICK_S = 0.2  # how soon a signal or a death is noticed
STACKS_S = 2.0  # how long a stalled worker has to write its stacks
STACK_LINES = 80


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
    """Makes what `records/todo.json` leaves to make of `plan`, in a worker process; keeps the journal and the log.

    `on_event` gets every event but `error`, which is raised as the class it names; the outputs of earlier starts come
    first. `verbose` copies the log to stderr. Raises PlanError inside another world, what the worker reports,
    WorkerCrashed, Stalled, Interrupted (Terminated for SIGTERM), OutputError, ItemsFailed once the others are done,
    RecipeError for a run that goes on.
    """
    check_alone(os.environ)
    log, todo = records / LOG_FILE, read_todo(records)
    with Journal(records, plan) as journal:
        follower = _Follower(on_event, journal, LogEcho(log) if verbose else None)
        follower.tell_kept(plan, todo)
        if todo.positions():
            _run_worker(plan, records, worker, follower, journal)
    state = follower.state
    if state.failed:
        raise items_failed(state.failed, len(plan.items), log)
    return RunResult(tuple(state.media), state.perf, log)


def _run_worker(plan: Plan, records: Path, worker: Sequence[str], follower: "_Follower", journal: Journal) -> None:
    """Starts a worker and follows it to its end."""
    log, watch = records / LOG_FILE, SignalWatch()
    environment = worker_environment(os.environ, threads=plan.threads, offline=plan.model.builtin)
    ranks = plan.degrees.num_gpus
    start = partial(Child, holds=[journal.descriptor]) if ranks == 1 else partial(RankGroup, ranks=ranks)
    try:
        with watch, start(worker, records / PLAN_FILE, log=log, environment=environment, hurry=watch.again) as child:
            lost = _follow(child, follower, watch, stall_timeout_s=plan.stall_timeout_s, log=log)
    finally:
        follower.copy_log()
        if not follower.state.finished:
            remove_temporaries(Path(plan.output.dir), since=records / PLAN_FILE)
    if lost:
        raise failure(lost, log)


class _Follower:
    """Takes in what the worker says: its events, which go to the journal first, and, where asked for, its log."""

    def __init__(self, on_event: Callable[[Event], None], journal: Journal, echo: LogEcho | None):
        self.state = RunState()
        self._ranks: dict[int, RunState] = {}
        self._journal = journal
        self._on_event = on_event
        self._echo = echo

    def of_rank(self, rank: int | None) -> RunState:
        """What one rank of many has said; without a rank, all of it."""
        return self.state if rank is None else self._ranks.setdefault(rank, RunState(rank))

    def tell_kept(self, plan: Plan, todo: Todo) -> None:
        """The outputs that an earlier start left, for whoever wants all of the run's."""
        for position, task in enumerate(todo.tasks):
            for file in () if task.make else self._journal.entries[position].outputs:
                path = str(Path(plan.output.dir) / file.path)
                kept = Output(item=position, path=path, sha256=file.sha256, size=file.size, kept=True)
                self.state.apply(kept)
                self._on_event(kept)

    def take(self, event: Event) -> None:
        self._journal.take(event)
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

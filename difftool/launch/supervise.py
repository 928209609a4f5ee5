"""Runs a plan: has a worker make it, follows its events, and turns every way it can end into a result or one error."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from difftool.files import remove_temporaries
from difftool.launch.child import GRACE_S, WORKER
from difftool.launch.events import Error, Event, Output, parse_event
from difftool.launch.failure import crash_event, failure, interrupt_event, items_failed, protocol_event, stall_event
from difftool.launch.journal import Journal
from difftool.launch.log import LogEcho, size, tail
from difftool.launch.meeting import Meeting
from difftool.launch.node_meeting import NodeMeeting
from difftool.launch.nsys import await_report, under_nsys
from difftool.launch.patience import Patience
from difftool.launch.records import LOG_FILE, PLAN_FILE, read_todo
from difftool.launch.signals import SignalWatch
from difftool.launch.start import Worker, assemble_worker, start_worker
from difftool.launch.state import Media, RunState
from difftool.planning.plan import Plan
from difftool.planning.todo import Todo

TICK_S = 0.2  # how soon a signal or a death is noticed
START_S = 120.0  # for processes to start, before the time a step may take: agent and workers import torch
STACKS_S = 2.0  # how long a stalled worker has to write its stacks
STACK_LINES = 60  # of every rank


@dataclass(frozen=True)
class RunResult:
    """What a run left: the media in the order they were finished, the perf dump, and the worker's log."""

    media: tuple[Media, ...]
    perf: Path | None
    log: Path


class Hire(Protocol):
    """Where the worker of a run comes from."""

    def __call__(
        self, plan: Plan, records: Path, *, holds: Sequence[int], hurry: Callable[[], bool]
    ) -> AbstractContextManager[Worker]:
        """A worker that makes `plan`. An error inside the context is the end of this worker.

        `hurry()` true cuts every wait for its end short; one started for this run keeps the descriptors `holds` open.
        """


def run(
    plan: Plan,
    records: Path,
    *,
    on_event: Callable[[Event], None],
    verbose: bool = False,
    worker: Sequence[str] = WORKER,
    meeting: Meeting | NodeMeeting | None = None,
) -> RunResult:
    """`supervise`, with a worker that is started for this plan and ends with it; in a world that an outer launcher
    made, or on several machines, with the processes that have come to the `meeting`.
    """
    watch = SignalWatch()

    def hire(plan: Plan, records: Path, *, holds: Sequence[int], hurry: Callable[[], bool]) -> Worker:
        log, file = records / LOG_FILE, records / PLAN_FILE
        if meeting is None:
            return start_worker(worker, plan, log, plan_file=file, holds=holds, hurry=hurry)
        told = watch.elsewhere.append
        return assemble_worker(worker, plan, log, plan_file=file, meeting=meeting, hurry=hurry, on_signal=told)

    return supervise(plan, records, hire=hire, watch=watch, on_event=on_event, verbose=verbose)


def supervise(
    plan: Plan,
    records: Path,
    *,
    hire: Hire,
    watch: SignalWatch,
    on_event: Callable[[Event], None],
    verbose: bool = False,
) -> RunResult:
    """Makes what `records/todo.json` leaves to make of `plan`, in a worker process; keeps the journal and the log.

    `on_event` gets every event but `error`, which is raised as the class it names; the outputs of earlier starts come
    first. `verbose` copies the log to stderr. Raises what `hire` raises, what the worker reports,
    WorkerCrashed, Stalled, Interrupted (Terminated for SIGTERM), OutputError (also of a report that `nsys` did not
    write), ItemsFailed once the others are done, RecipeError for a run that goes on.
    """
    log, todo = records / LOG_FILE, read_todo(records)
    with Journal(records, plan) as journal:
        replica = plan.degrees.num_gpus // plan.degrees.dp
        follower = _Follower(on_event, journal, LogEcho(log) if verbose else None, replica=replica)
        follower.tell_kept(plan, todo)
        if todo.positions():
            hired = partial(hire, plan, records, holds=[journal.descriptor], hurry=watch.again)
            _run_worker(plan, records, hired, follower, watch)
    state = follower.state
    if state.failed:
        raise items_failed(state.failed, len(plan.items), log)
    return RunResult(tuple(state.media), state.perf, log)


def _run_worker(
    plan: Plan,
    records: Path,
    hired: Callable[[], AbstractContextManager[Worker]],
    follower: "_Follower",
    watch: SignalWatch,
) -> None:
    """Follows a worker to the end of the plan."""
    log = records / LOG_FILE
    try:
        with watch, hired() as worker:
            lost = _follow(worker, follower, watch, stall_timeout_s=plan.stall_timeout_s, log=log)
            if lost:
                raise failure(lost, log)
            if under_nsys(plan):
                await_report(plan, records, worker.wait)
    finally:
        follower.copy_log()
        if not follower.state.finished:
            remove_temporaries(Path(plan.output.dir), since=records / PLAN_FILE)


class _Follower:
    """Takes in what the worker says: its events, which go to the journal first, and, where asked for, its log."""

    def __init__(self, on_event: Callable[[Event], None], journal: Journal, echo: LogEcho | None, *, replica: int):
        """`replica` ranks make an item together, and the first of them speaks of it."""
        self.state = RunState()
        self._ranks: dict[int, RunState] = {}
        self._replica = replica
        self._journal = journal
        self._on_event = on_event
        self._echo = echo

    def of_rank(self, rank: int | None) -> RunState:
        """Where one rank of many is, by what the one that speaks for it has said; without a rank, all of it."""
        if rank is None:
            return self.state
        return replace(self._spoken(rank - rank % self._replica), rank=rank)

    def _spoken(self, rank: int) -> RunState:
        return self._ranks.setdefault(rank, RunState(rank))

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
            self._spoken(event.rank).apply(event)
        if not isinstance(event, Error):
            self._on_event(event)

    def copy_log(self) -> None:
        if self._echo:
            self._echo.copy()


def _follow(
    worker: Worker, follower: _Follower, watch: SignalWatch, *, stall_timeout_s: float, log: Path
) -> Error | None:
    """Follows the worker to the end of the plan; the failure, if it is one."""
    state, patience = follower.state, Patience(stall_timeout_s, start_s=START_S)
    while not state.over:
        # before reading: what a worker wrote before it died is read, and an outer launcher asks to end after a death
        status, asked = worker.status(), watch.asked
        for line in worker.read_lines(TICK_S):
            try:
                event = parse_event(line)
            except ValueError as error:
                return protocol_event(state, line, error)
            patience.hear(event)
            follower.take(event)
        follower.copy_log()
        if state.over:
            break
        if status is not None:
            return crash_event(follower.of_rank(worker.rank), status, log)
        if asked is not None and worker.status() is None:
            return interrupt_event(state, asked)
        if patience.over():
            silent = follower.of_rank(patience.silent)
            return stall_event(silent, stall_timeout_s, _stacks(worker, log), log)
    if state.error or not worker.stays:
        worker.wait(GRACE_S)
    return state.error


def _stacks(worker: Worker, log: Path) -> str:
    """What the worker writes to its log when asked where it is."""
    start = size(log)
    worker.ask_for_stacks()
    worker.wait(STACKS_S)
    return tail(log, STACK_LINES * worker.ranks, start=start)

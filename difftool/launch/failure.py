"""How a run that failed is told: every cause becomes one `Error` event, and every event one class of the error tree."""

import signal
from collections.abc import Sequence
from pathlib import Path

from difftool.errors import DifftoolError, Interrupted, ItemsFailed, OutOfMemoryError
from difftool.launch.events import Error, ItemFailed
from difftool.launch.log import tail
from difftool.launch.state import RunState

LOST = -1000  # in place of the exit status of a rank that nothing can be known of any more
LOG_LINES = 20  # of the worker's log kept with a crash
SHOWN_ITEMS = 10  # of those that failed
TRACEBACK_LINES = 12  # of an internal error's traceback that are shown


class Terminated(Interrupted):
    """The process was asked to end by SIGTERM or SIGHUP."""

    exit_code = 143


class WorkerReport(Exception):
    """The `Error` event behind an error, as its `__cause__`: what `--json` prints."""

    def __init__(self, event: Error):
        super().__init__(event.message)
        self.event = event


_OURS = ("WorkerCrashed", "Stalled", "Interrupted", "Terminated")  # told below: the message says where already
_SIGNAL_WORDS = {
    signal.SIGKILL: "killed by SIGKILL, likely out of host memory",
    signal.SIGSEGV: "killed by SIGSEGV (segmentation fault)",
    signal.SIGBUS: "killed by SIGBUS (bus error: shared memory or disk full, or a mapped file was cut)",
    signal.SIGABRT: "killed by SIGABRT (a native library aborted)",
    signal.SIGILL: "killed by SIGILL (an instruction this processor lacks)",
}


def failure(event: Error, log: Path) -> DifftoolError:
    """The error to raise for `event`; its cause holds the event itself."""
    known = OutOfMemoryError if event.exit_code == OutOfMemoryError.exit_code else _classes().get(event.kind)
    if known is None:
        shown = f"internal error: {event.kind}: {event.message}{_where(event)}"
        error = DifftoolError(shown + _quoted(event.traceback, TRACEBACK_LINES), hint=f"the worker's log is {log}")
    elif event.kind in _OURS:
        error = known(event.message + _quoted(event.traceback), hint=event.hint)
    else:
        error = known(event.message + _where(event), hint=event.hint)
    error.__cause__ = WorkerReport(event)
    return error


def items_failed(failed: Sequence[ItemFailed], items: int, log: Path) -> ItemsFailed:
    """The error of a run that went on after items had failed."""
    lines = [f"{item.item_id}: {item.kind}: {item.message}" for item in sorted(failed, key=lambda item: item.item)]
    more = [f"and {len(lines) - SHOWN_ITEMS} more"] if len(lines) > SHOWN_ITEMS else []
    message = f"{len(lines)} of {items} items failed" + _quoted("\n".join([*lines[:SHOWN_ITEMS], *more]))
    return ItemsFailed(message, hint=f"--resume makes them again; their tracebacks are in {log}")


def crash_event(state: RunState, status: int, log: Path) -> Error:
    """A worker that ended without a word; `status` is negative for a signal, as `subprocess` has it."""
    return _event(
        state,
        "WorkerCrashed",
        f"{state.worker} {describe_status(status)}{state.place()}",
        hint=f"the whole log is {log}",
        traceback=tail(log, LOG_LINES),
    )


def stall_event(state: RunState, seconds: float, stacks: str, log: Path) -> Error:
    """No event for `seconds`; `stacks` is what the worker wrote when asked where it is."""
    who = "" if state.rank is None else f" of {state.worker}"
    return _event(
        state,
        "Stalled",
        f"no progress{who} for {seconds:g} s{state.place()}; the worker was ended",
        hint=f"raise launch.stall_timeout_s if a step may take that long; the stacks are in {log}",
        traceback=stacks,
    )


def interrupt_event(state: RunState, number: int) -> Error:
    """The user or the system asked the launcher to end."""
    word = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    kind = "Interrupted" if number == signal.SIGINT else "Terminated"
    count = len(state.media)
    kept = f"; {count} finished output{'s' * (count != 1)} kept" if count else ""
    return _event(state, kind, f"{word}{state.place()}{kept}")


def protocol_event(state: RunState, line: bytes, error: ValueError) -> Error:
    """The worker wrote something on the event stream that is no event: a bug of ours."""
    return _event(state, "ProtocolError", f"the worker sent {line[:200]!r}, which is no event", traceback=str(error))


def describe_status(status: int) -> str:
    """`exited with status 3`, `killed by SIGKILL, …`."""
    if status == LOST:
        return "was lost: its node, or the network to it, is gone"
    if status >= 0:
        return f"exited with status {status}" + (" before it was done" if status == 0 else "")
    try:
        number = signal.Signals(-status)
    except ValueError:
        return f"was killed by signal {-status}"
    return "was " + _SIGNAL_WORDS.get(number, f"killed by {number.name}")


def _classes(root: type[DifftoolError] = DifftoolError) -> dict[str, type[DifftoolError]]:
    """The error tree by name: a class added to it is reported as itself."""
    below = {name: error for child in root.__subclasses__() for name, error in _classes(child).items()}
    return {root.__name__: root, **below}


def _event(state: RunState, kind: str, message: str, *, hint: str | None = None, traceback: str | None = None) -> Error:
    return Error(
        kind=kind,
        exit_code=_classes().get(kind, DifftoolError).exit_code,
        rank=state.rank,
        message=message,
        hint=hint,
        stage=state.stage,
        item=state.item.item if state.item else None,
        item_id=state.item.id if state.item else None,
        traceback=traceback or None,
    )


def _where(event: Error) -> str:
    rank = f"rank {event.rank}" if event.rank is not None else ""
    words = [rank, event.stage or "", f"item {event.item_id}" if event.item_id is not None else ""]
    return f" ({', '.join(filter(None, words))})" if any(words) else ""


def _quoted(text: str | None, lines: int | None = None) -> str:
    """The last `lines` lines of `text`, to stand under a message behind a bar."""
    last = (text or "").splitlines()[-(lines or 0) :]
    return "".join(f"\n  | {line}" for line in last)

"""One worker process: its event pipe, its log, and its end. The worker leads a session of its own, so that one signal
reaches everything it started.

A worker is told `PLAN.json --events-fd N`; one that stays is told `-`, and then each of its plans on stdin, a line
`{"plan": …, "log": …}`. On SIGUSR1 it writes the stacks of its threads to its log, on SIGTERM it
ends; should the launcher itself be killed, the worker ends by the parent-death signal that it asks for at its start.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from difftool.files import output_error

WORKER = (sys.executable, "-m", "difftool.worker")
STREAM = "-"  # in place of a plan: the worker stays, and is told one after the other
GRACE_S = 5.0  # between SIGTERM and SIGKILL
POLL_S = 0.05


def wait_for(process: "subprocess.Popen[bytes]", seconds: float, hurry: Callable[[], bool]) -> bool:
    """Waits up to `seconds` for a process to end, less once `hurry()`; whether it ended."""
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        left = deadline - time.monotonic()
        if left <= 0 or hurry():
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(left, POLL_S))
    return True


class Child:
    """A running worker. As a context manager it leaves nothing alive, whatever the way out."""

    def __init__(
        self,
        command: Sequence[str],
        plan: Path | None,
        *,
        log: Path,
        environment: Mapping[str, str],
        hurry: Callable[[], bool] = lambda: False,
        holds: Sequence[int] = (),
    ):
        """Without a plan it stays, for those that `send` brings.

        `hurry()` true cuts every wait for the worker's end short; `holds` are descriptors that it keeps open.
        """
        self.rank: int | None = None  # of many, the one that failed
        self.ranks = 1
        self.stays = plan is None
        self._hurry = hurry
        self._pending = b""
        self.end_of_events = False
        with _open_log(log) as sink:
            self._events, writer = os.pipe()
            try:
                self._process = subprocess.Popen(
                    [*command, str(plan or STREAM), "--events-fd", str(writer)],
                    stdin=subprocess.PIPE if self.stays else subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    pass_fds=[writer, *holds],
                    env=dict(environment),
                    start_new_session=True,
                )
            except OSError:
                os.close(self._events)
                raise
            finally:
                os.close(writer)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._events, selectors.EVENT_READ)

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._selector.close()
            os.close(self._events)
            if self._process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):  # of a plan that it did not live to read
                    self._process.stdin.close()

    def send(self, plan: Path, log: Path) -> None:
        """Hands the next plan to a worker that stays. That it has ended meanwhile is seen by its `status`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(task_line(plan, log))
            self._process.stdin.flush()

    def ready(self) -> bool:
        """Whether it lives, to take a plan."""
        return self.status() is None

    def status(self) -> int | None:
        """The exit status (negative for a signal), None while the worker runs."""
        return self._process.poll()

    def answers(self, seconds: float) -> bool:
        """Waits up to `seconds` for a word of the plan sent to it; False where it ended without one."""
        self._take(seconds)
        return bool(self._pending) or not self.end_of_events

    def read_lines(self, seconds: float) -> list[bytes]:
        """Waits up to `seconds`, then takes what is there. A line that the worker's death cut never completes."""
        whole = b"\n" in self._pending
        if self.end_of_events and not whole:
            self.wait(seconds)
            return []
        self._take(0 if whole else seconds)
        *lines, self._pending = self._pending.split(b"\n")
        return [line for line in lines if line.strip()]

    def _take(self, seconds: float) -> None:
        while not self.end_of_events and self._selector.select(seconds):
            chunk = os.read(self._events, 1 << 16)
            self.end_of_events = not chunk
            self._pending += chunk
            seconds = 0

    def wait(self, seconds: float) -> bool:
        """Waits up to `seconds` for the worker to end; whether it ended."""
        return wait_for(self._process, seconds, self._hurry)

    def ask_for_stacks(self) -> None:
        """Only the worker itself: SIGUSR1 would end a helper process that does not expect it."""
        self._process.send_signal(signal.SIGUSR1)

    def stop(self) -> None:
        """SIGTERM to the whole group, then SIGKILL after the grace or as soon as `hurry()`."""
        if self._process.poll() is None:
            self._signal_group(signal.SIGTERM)
            self.wait(GRACE_S)
        self._signal_group(signal.SIGKILL)  # also what a worker that ended left behind
        self._process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        # macOS answers EPERM for a group that holds only zombies
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def task_line(plan: Path, log: Path) -> bytes:
    """What a worker that stays is told."""
    return json.dumps({"plan": str(plan), "log": str(log)}).encode() + b"\n"


def _open_log(log: Path) -> BinaryIO:
    try:
        return log.open("wb")
    except OSError as error:
        raise output_error(log, error) from error

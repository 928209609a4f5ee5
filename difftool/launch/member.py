"""What every process of an outer launcher's world does: it runs the worker of its rank, as the first process asks.

The first process sends `{"start": …}`, `{"signal": 10}` for the worker, `{"stop": 5.0}` (seconds between SIGTERM and
SIGKILL) and at last `{"end": exit code}`; it is told `{"ended": exit status}` of the worker and `{"signal": 15}` that
this process has got.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from difftool.errors import WorkerCrashed
from difftool.launch.agent import PRIVATE
from difftool.launch.environment import worker_environment
from difftool.launch.meeting import Channel, join
from difftool.launch.outside import Outside
from difftool.launch.signals import WATCHED, SignalWatch

TICK_S = 0.1


def attend(outside: Outside, arguments: Sequence[str]) -> int:
    """Takes part in the run of the first process until all is over; the exit code of all.

    Raises WorkerCrashed where the first process does not come, or is gone before it has told the exit code.
    """
    with SignalWatch() as watch:
        channel = join(outside, arguments, watch)
        code = None if channel is None else Member(channel, outside.rank, outside.size, watch).serve()
        if code is not None:
            for number in WATCHED:  # the outer launcher may end this process as soon as another has ended
                signal.signal(number, signal.SIG_IGN)
            return code
    if watch.received:
        return 128 + watch.received[0]
    raise WorkerCrashed(
        f"rank 0's process, of the {outside.size} that {outside.launcher} started, ended without a word",
        hint="--resume makes what is left of the run",
    )


class Member:
    """One rank's worker, ruled by a channel."""

    def __init__(self, channel: Channel, rank: int, size: int, watch: SignalWatch):
        self._channel = channel
        self._rank = rank
        self._size = size
        self._watch = watch
        self._worker: subprocess.Popen[bytes] | None = None
        self._kill_at = float("inf")

    def serve(self) -> int | None:
        """Obeys until the end: the exit code, None where the first process is gone or a second signal came."""
        told = 0
        try:
            while not (self._channel.gone or self._watch.again()):
                for order in self._channel.read(TICK_S):
                    if "end" in order:
                        return int(order["end"])
                    self._obey(order)
                for number in self._watch.received[told:]:
                    self._channel.send({"signal": number})
                told = len(self._watch.received)
                self._report()
            return None
        finally:
            self._signal_group(signal.SIGKILL)
            if self._worker is not None:
                self._worker.wait()
            self._channel.close()

    def _obey(self, order: Mapping[str, Any]) -> None:
        if "start" in order:
            self._start(**order["start"])
        elif "signal" in order and self._worker is not None:
            self._worker.send_signal(order["signal"])
        elif "stop" in order:
            self._signal_group(signal.SIGTERM)
            self._kill_at = min(self._kill_at, time.monotonic() + order["stop"])

    def _start(self, *, command: list[str], folder: str, log: str, pinned: Mapping[str, Any]) -> None:
        rank = {"RANK": str(self._rank), "LOCAL_RANK": str(self._rank), "WORLD_SIZE": str(self._size)}
        environment = worker_environment(os.environ, **pinned)
        with Path(log).open("ab") as sink:
            self._worker = subprocess.Popen(
                [*command, "--ranks-folder", folder, "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**environment, **PRIVATE, **rank},
                start_new_session=True,
            )

    def _report(self) -> None:
        """Tells the worker's end. One that was asked to end is killed when its time is up."""
        if time.monotonic() > self._kill_at:
            self._signal_group(signal.SIGKILL)
        status = None if self._worker is None else self._worker.poll()
        if status is not None:
            self._signal_group(signal.SIGKILL)  # what it left behind
            self._worker = None
            self._channel.send({"ended": status})

    def _signal_group(self, number: signal.Signals) -> None:
        # macOS answers EPERM for a group that holds only zombies
        if self._worker is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._worker.pid, number)

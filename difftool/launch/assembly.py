"""The ranks of a world that an outer launcher made, seen from its first process: an `Agent` that starts no process
beyond those there are. Each process of the world runs the worker of its rank; the first one in a thread.
"""

import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from difftool.files import output_error
from difftool.launch.agent import LAST_WORDS_S, TOLD
from difftool.launch.meeting import Channel, Meeting
from difftool.launch.member import Member
from difftool.launch.pipes import Pipes
from difftool.launch.signals import SignalWatch

SETTLE_S = 2.0  # for ranks to end by themselves once one has failed: the others lose a peer
POLL_S = 0.05


class Assembly:
    """Running ranks, each a worker of another process. Its process's death is the death of a rank."""

    def __init__(
        self,
        command: Sequence[str],
        meeting: Meeting,
        *,
        log: Path,
        pinned: Mapping[str, Any],
        hurry: Callable[[], bool],
        on_signal: Callable[[int], None],
    ):
        """`pinned` are what `worker_environment` takes; `hurry()` true cuts every wait short; `on_signal` hears of
        signals that other processes got.

        Raises OutputError where the log cannot be written.
        """
        self.ranks = meeting.outside.size
        self._hurry = hurry
        self._on_signal = on_signal
        self._ended: dict[int, int] = {}
        try:
            log.write_bytes(b"")
        except OSError as error:
            raise output_error(log, error) from error
        self._pipes = Pipes(self.ranks, meeting.folder)
        near, far = socket.socketpair()
        own = Member(Channel(far), 0, self.ranks, SignalWatch())
        self._thread = threading.Thread(target=own.serve, name="difftool-rank-0", daemon=True)
        self._thread.start()
        self._channels = {0: Channel(near), **meeting.channels}
        start = {"command": list(command), "folder": str(meeting.folder), "log": str(log)}
        for channel in self._channels.values():
            channel.send({"start": {**start, "pinned": pinned}})

    def status(self) -> int | None:
        """0 once every rank has ended, None before."""
        return 0 if len(self._ended) == self.ranks else None

    def read(self, seconds: float) -> list[tuple[int, bytes]]:
        """Waits up to `seconds`, then takes the complete lines that are there, each with its rank."""
        lines = self._pipes.read(seconds)
        self._listen()
        return lines

    def gone(self, rank: int) -> bool:
        """Whether a rank has ended."""
        return rank in self._ended

    def settle(self, seconds: float) -> dict[int, int]:
        """Waits a moment for all ranks to end, then ends them, those deaf to SIGTERM after `seconds`.

        The exit statuses, negative for a signal, of the ranks that ended badly and not because they were told to.
        """
        self.wait(SETTLE_S)
        own = dict(self._ended)
        self._end_ranks(seconds)
        return {rank: code for rank, code in own.items() if code not in TOLD}

    def wait(self, seconds: float) -> bool:
        """Waits up to `seconds` for every rank to end; whether they have ended."""
        deadline = time.monotonic() + seconds
        self._listen()
        while self.status() is None and time.monotonic() < deadline and not self._hurry():
            time.sleep(POLL_S)
            self._listen()
        return self.status() is not None

    def signal_rank(self, rank: int, number: signal.Signals) -> None:
        """Only the rank itself, if it runs."""
        self._channels[rank].send({"signal": number})

    def stop(self, grace_s: float) -> None:
        """Ends every rank; the processes of the world stay, to hear the exit code."""
        try:
            self._end_ranks(grace_s)
        finally:
            self._channels[0].close()
            self._thread.join()
            self._pipes.close()

    def _end_ranks(self, grace_s: float) -> None:
        for grace in (grace_s, 0.0):
            if self.status() is None:
                for channel in self._channels.values():
                    channel.send({"stop": grace})
                self.wait(grace + LAST_WORDS_S)

    def _listen(self) -> None:
        """Takes in what the processes say. With a process its worker dies, by the parent-death signal."""
        for rank, channel in self._channels.items():
            for message in channel.read(0.0):
                if "ended" in message:
                    self._ended[rank] = message["ended"]
                else:
                    self._on_signal(message["signal"])
            if channel.gone:
                self._ended.setdefault(rank, -signal.SIGKILL)

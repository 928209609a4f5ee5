"""Where the processes of a world that an outer launcher made find each other: a socket in a private folder, whose name
follows from the world's. The first process listens, and keeps a channel to each of the others until all is over.
"""

import contextlib
import json
import select
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from difftool.errors import PlanError, WorkerCrashed
from difftool.files import output_error
from difftool.launch.outside import Outside
from difftool.launch.pipes import PrivateFolder, is_private, named_folder
from difftool.launch.signals import WATCHED, SignalWatch

COMING_S = 60.0  # for the processes of a world to start, all about the same time
MAX_MESSAGE = 256 * 1024 * 1024  # bytes: more than any plan, less than the memory
HELLO_S = 5.0
POLL_S = 0.05


class Channel:
    """JSON messages to and from another process. `gone`: it has closed its end, or ended, or makes no sense."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._pending = b""
        self.gone = False

    def send(self, message: Mapping[str, Any]) -> None:
        """Never fails: that the other is gone is seen by reading."""
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def read(self, seconds: float) -> list[dict[str, Any]]:
        """Waits up to `seconds` for a whole message; all complete ones that are there."""
        until = time.monotonic() + seconds
        while not self.gone and select.select([self._connection], [], [], max(0.0, until - time.monotonic()))[0]:
            try:
                data = self._connection.recv(1 << 16)
            except OSError:
                data = b""
            self._pending += data
            self.gone = not data or len(self._pending) > MAX_MESSAGE
            until = 0.0 if b"\n" in data else until
        *lines, self._pending = self._pending.split(b"\n")
        try:
            return [dict(json.loads(line)) for line in lines]
        except (TypeError, ValueError):  # a stranger
            self.gone = True
            return []

    def ends(self) -> tuple[str, str]:
        """The addresses of the other machine and of this one, of a channel between machines."""
        return self._connection.getpeername()[0], self._connection.getsockname()[0]

    def close(self) -> None:
        self._connection.close()


class Meeting:
    """The first process's side, as a context manager. `channels` holds one for each of the other ranks that came."""

    def __init__(self, outside: Outside, arguments: Sequence[str]):
        """`arguments` is the command line, which must be that of all. Raises PlanError, OutputError."""
        self.outside = outside
        self.channels: dict[int, Channel] = {}
        self._arguments = list(arguments)
        self._until = time.monotonic() + COMING_S
        path = named_folder(outside.name)
        try:
            self._folder = PrivateFolder(outside.name)
        except FileExistsError:
            message = f"{path} is taken: another world of the same name runs, or the folder is not yours"
            raise PlanError(message, hint="wait for the other run, or set TMPDIR to a folder of your own") from None
        except OSError as error:
            raise output_error(path, error) from error
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(str(_socket(path)))
        except OSError as error:  # a path that is too long has no errno
            self._folder.remove()
            raise PlanError(f"cannot listen at {_socket(path)}: {error}", hint="set TMPDIR to a short path") from error
        self._listener.listen(outside.size)

    def __enter__(self) -> "Meeting":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        for channel in self.channels.values():
            channel.close()
        self._folder.remove()

    @property
    def folder(self) -> Path:
        return self._folder.path

    def gather(self) -> None:
        """Waits for all processes. Raises WorkerCrashed for one that does not come, PlanError for another command."""
        size, launcher = self.outside.size, self.outside.launcher
        for arguments in self._arrivals():
            if arguments != self._arguments:
                raise PlanError(
                    f"{launcher} started {size} processes with different arguments: {' '.join(self._arguments)}; "
                    f"{' '.join(arguments)}",
                    hint="they are the ranks of one run: give all the same; for runs of their own, start each alone",
                )
        missing = [rank for rank in range(1, size) if rank not in self.channels]
        if missing:
            names = ", ".join(map(str, missing))
            raise WorkerCrashed(
                f"rank {names} of the {size} that {launcher} started did not come in {COMING_S:g} s",
                hint="all must run on this machine, as this user, and with the same TMPDIR",
            )

    def end(self, code: int) -> None:
        """Tells every process the exit code of all, those too that come only now."""
        for number in WATCHED:  # the outer launcher may end this process as soon as one has ended
            signal.signal(number, signal.SIG_IGN)
        for _ in self._arrivals():
            pass
        for channel in self.channels.values():
            channel.send({"end": code})

    def _arrivals(self) -> Iterator[list[str]]:
        """The arguments of each process that comes, until all are here or time is up."""
        while len(self.channels) < self.outside.size - 1:
            left = self._until - time.monotonic()
            if left <= 0 or not select.select([self._listener], [], [], left)[0]:
                return
            channel = Channel(self._listener.accept()[0])
            hello = next(iter(channel.read(HELLO_S)), None)
            if hello is None or hello["rank"] in self.channels:
                channel.close()
                continue
            self.channels[hello["rank"]] = channel
            yield hello["arguments"]


def join(outside: Outside, arguments: Sequence[str], watch: SignalWatch) -> Channel | None:
    """The channel to the first process, from any other one; None where a signal came first.

    Raises WorkerCrashed where the first process does not come.
    """
    folder, until = named_folder(outside.name), time.monotonic() + COMING_S
    while time.monotonic() < until:
        if watch.received:
            return None
        connection = socket.socket(socket.AF_UNIX)
        if is_private(folder):  # else a stranger might listen there
            with contextlib.suppress(OSError):
                connection.connect(str(_socket(folder)))
                channel = Channel(connection)
                channel.send({"rank": outside.rank, "arguments": list(arguments)})
                return channel
        connection.close()
        time.sleep(POLL_S)
    raise WorkerCrashed(
        f"rank 0 of the {outside.size} that {outside.launcher} started did not come in {COMING_S:g} s",
        hint="all must run on this machine, as this user, and with the same TMPDIR",
    )


def _socket(folder: Path) -> Path:
    return folder / "meeting"

"""Where the ranks of one machine meet their launcher: a private folder with a named pipe for the lines of each rank.

The launcher holds a lock on the folder for as long as it lives. A folder without it was left behind by one that was
killed, and the next launcher of the same user removes it.
"""

import contextlib
import fcntl
import json
import os
import selectors
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PREFIX = "difftool-ranks-"
TAKEN_S = 1.0  # for a name to become free: its folder is being removed, or somebody lives there
POLL_S = 0.05
STARTED = b'{"event": "started", "pid": '


class Pipes:
    """The folder, and the reading ends of the pipes in it. `pids` fills up as ranks tell theirs."""

    def __init__(self, ranks: int, folder: Path):
        self.pids: dict[int, int] = {}
        self._pending = dict.fromkeys(range(ranks), b"")
        self._selector = selectors.DefaultSelector()
        for rank in range(ranks):
            pipe = open_pipe(folder / f"answers-{rank}")
            self._selector.register(pipe, selectors.EVENT_READ, rank)

    def read(self, seconds: float) -> list[tuple[int, bytes]]:
        """Waits up to `seconds`, then takes the complete lines that are there, each with its rank."""
        lines: list[tuple[int, bytes]] = []
        for key, _ in self._selector.select(seconds):
            rank, data = key.data, b""
            with contextlib.suppress(BlockingIOError):
                while chunk := os.read(key.fd, 1 << 16):
                    data += chunk
            *whole, self._pending[rank] = (self._pending[rank] + data).split(b"\n")
            lines += [(rank, line) for line in whole if line.strip()]
        for rank, line in lines:
            if rank not in self.pids and line.startswith(STARTED):
                self.pids[rank] = json.loads(line)["pid"]
        return lines

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            os.close(key.fd)
        self._selector.close()


class PrivateFolder:
    """A folder below the temporary one that only this user may enter, locked until `remove`."""

    def __init__(self, name: str | None = None):
        """Without a name it gets one that nobody has. Raises FileExistsError where a living process has that name."""
        remove_abandoned()
        self.path, self._lock = _make(lambda: tempfile.mkdtemp(prefix=PREFIX) if name is None else _named(name))

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def named_folder(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"{PREFIX}{name}"


def is_private(folder: Path) -> bool:
    """Whether it is there, this user's own, and closed to everybody else."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def remove_abandoned() -> None:
    """Removes the folders of this user whose launcher was killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if is_private(folder) and (lock := _lock(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def open_pipe(path: Path) -> int:
    """Makes a named pipe and opens it both ways, so that neither end ever waits for the other to come."""
    os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)


def _make(make: Callable[[], str]) -> tuple[Path, int]:
    """The folder with its lock. Another launcher may take it for an abandoned one before it is locked: then again."""
    deadline = time.monotonic() + TAKEN_S
    while True:
        try:
            folder = Path(make())
        except FileExistsError:
            if time.monotonic() > deadline:
                raise
            remove_abandoned()
            time.sleep(POLL_S)
            continue
        lock = _lock(folder)
        if lock is not None and _is_at(folder, lock):
            return folder, lock
        if lock is not None:
            os.close(lock)


def _named(name: str) -> str:
    folder = named_folder(name)
    folder.mkdir(0o700)
    return str(folder)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None where somebody else does, or the folder is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _is_at(folder: Path, descriptor: int) -> bool:
    """Whether the open folder still has its name."""
    try:
        return os.path.samestat(folder.lstat(), os.fstat(descriptor))
    except OSError:
        return False

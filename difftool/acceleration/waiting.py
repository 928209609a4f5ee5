"""Where weights wait while nothing needs them, as runs of bytes: in the host's memory or, on a device that has no other
memory than that, on the disk.
"""

import os
import tempfile
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from difftool.errors import OutputError
from difftool.platforms.base import Platform
from difftool.platforms.host_memory import HostStore

Arrival = Callable[[], Tensor]  # waits, and gives the bytes, on the device


class Kept(Protocol):
    """One run of bytes that waits."""

    def fetch(self) -> Arrival:
        """Begins to bring a copy to the device, while that computes. What was begun must be waited for."""

    def read(self) -> Tensor:
        """[N] bytes on the host, to be changed in place and given to `write`."""

    def write(self, changed: Tensor) -> None:
        """Keeps these from now on."""


class Store(Protocol):
    """A place to wait at. `name` is what the dump calls it."""

    name: str

    def room(self, size: int) -> Tensor:
        """[N] bytes on the host to fill and to keep."""

    def keep(self, filled: Tensor) -> Kept:
        """Takes what `room` gave."""


def open_store(platform: Platform, *, pinned: bool) -> Store:
    """The host's memory, page-locked if asked for, for a device with memory of its own; else the disk."""
    return HostStore(platform.device, pinned=pinned) if platform.memory_apart else DiskStore(platform.device)


class DiskStore:
    """One file without a name in the folder for temporary files: it is gone when the process is, however that ends."""

    name = "disk"

    def __init__(self, device: torch.device):
        self.device = device
        self.file, path = tempfile.mkstemp(prefix="difftool-weights-")
        os.unlink(path)
        weakref.finalize(self, os.close, self.file)
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="weights")  # reads ahead, one run after the other
        self._size = 0

    def room(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def keep(self, filled: Tensor) -> "DiskBytes":
        kept = DiskBytes(self, self._size, filled.numel())
        kept.write(filled)
        self._size += filled.numel()
        return kept


class DiskBytes:
    def __init__(self, store: DiskStore, start: int, size: int):
        self._store, self._start, self._size = store, start, size

    def fetch(self) -> Arrival:
        reading = self._store.reader.submit(self.read)
        return lambda: reading.result().to(self._store.device)

    def read(self) -> Tensor:
        made = torch.empty(self._size, dtype=torch.uint8)
        view, done = memoryview(made.numpy()), 0
        while done < self._size:
            count = os.preadv(self._store.file, [view[done:]], self._start + done)
            assert count, "the file ends early"
            done += count
        return made

    def write(self, changed: Tensor) -> None:
        view, done = memoryview(changed.numpy()), 0
        try:
            while done < self._size:
                done += os.pwritev(self._store.file, [view[done:]], self._start + done)
        except OSError as error:
            raise OutputError(
                f"weights that are to wait on the disk cannot be written to {tempfile.gettempdir()}: {error.strerror}",
                hint="name a folder with room in TMPDIR, or use offload none",
            ) from error

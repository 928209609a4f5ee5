"""Bytes of a CUDA device's weights that wait in the host's memory, and come back beside what the device computes."""

import mmap
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from difftool.errors import OutOfMemoryError, PlanError

PAGE = mmap.PAGESIZE
PORTABLE = 1  # cudaHostRegisterPortable: for every context of the process
FULL = 2  # cudaErrorMemoryAllocation


class HostStore:
    """Copies run on a stream of their own, beside the kernels of the current one."""

    def __init__(self, device: torch.device, *, pinned: bool):
        self.name = "pinned host memory" if pinned else "host memory"
        self._device, self._pinned = device, pinned
        self._stream = torch.cuda.Stream(device)

    def room(self, size: int) -> Tensor:
        return whole_pages(size) if self._pinned else torch.empty(size, dtype=torch.uint8)

    def keep(self, filled: Tensor) -> "HostBytes":
        kept = HostBytes(filled, self._device, self._stream)
        if self._pinned and filled.numel():
            lock(filled, torch.cuda.cudart())
            # with the process all locks end by themselves
            weakref.finalize(kept, _unlock, filled, self._stream).atexit = False
        return kept


class HostBytes:
    def __init__(self, bytes_: Tensor, device: torch.device, stream: torch.cuda.Stream):
        self._bytes, self._device, self._stream = bytes_, device, stream

    def fetch(self) -> Callable[[], Tensor]:
        current = torch.cuda.current_stream(self._device)
        made = torch.empty_like(self._bytes, device=self._device)
        self._stream.wait_stream(current)  # kernels that were queued before may still read what was freed for this
        with torch.cuda.stream(self._stream):
            made.copy_(self._bytes, non_blocking=True)
        arrived = self._stream.record_event()

        def wait() -> Tensor:
            torch.cuda.current_stream(self._device).wait_event(arrived)
            return made

        return wait

    def read(self) -> Tensor:
        self._stream.synchronize()  # a copy that was begun reads them too
        return self._bytes

    def write(self, changed: Tensor) -> None:
        assert changed.data_ptr() == self._bytes.data_ptr(), "changed in place"


def whole_pages(size: int) -> Tensor:
    """[size] bytes that share no page with anything else, since memory is locked by the page.

    torch's own page-locked memory is not used: it takes the next power of two of what is asked for.
    """
    around = torch.empty(-(-size // PAGE) * PAGE + PAGE, dtype=torch.uint8)
    begins = -around.data_ptr() % PAGE
    return around[begins : begins + size]


def lock(filled: Tensor, runtime: Any) -> None:
    """Page-locks bytes by CUDA's `runtime`. Raises OutOfMemoryError where the host has none left to lock, PlanError
    where it cannot be locked for another reason.
    """
    error = runtime.cudaHostRegister(filled.data_ptr(), filled.numel(), PORTABLE)
    if int(error):
        kind = OutOfMemoryError if int(error) == FULL else PlanError
        size, reason = filled.numel() / 2**20, runtime.cudaGetErrorString(error)
        message = f"{size:.1f} MiB more of the host's memory cannot be page-locked for weights that wait: {reason}"
        raise kind(message, hint="use launch.pin_memory: false, or send fewer weights away")


def _unlock(filled: Tensor, stream: torch.cuda.Stream) -> None:
    stream.synchronize()  # a copy that was begun reads them
    torch.cuda.cudart().cudaHostUnregister(filled.data_ptr())

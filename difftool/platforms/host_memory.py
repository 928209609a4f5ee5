"""Bytes of a CUDA device's weights that wait in the host's memory, and come back beside what the device computes."""

from collections.abc import Callable

import torch
from torch import Tensor


class HostStore:
    """Copies run on a stream of their own, beside the kernels of the current one."""

    def __init__(self, device: torch.device, *, pinned: bool):
        self.name = "pinned host memory" if pinned else "host memory"
        self._device, self._pinned = device, pinned
        self._stream = torch.cuda.Stream(device)

    def room(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)

    def keep(self, filled: Tensor) -> "HostBytes":
        return HostBytes(filled, self._device, self._stream)


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

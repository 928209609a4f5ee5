"""What the engine asks of a device, and the choice of one."""

import os
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from difftool.errors import PlanError


class Platform(Protocol):
    """One kind of device. Marks are points on the device's own timeline; they cost no synchronisation.

    `memory_apart`: it has memory of its own, so that something can be away from it in the host's.
    """

    name: str
    memory_apart: bool
    device: torch.device

    def default_precision(self, role: str) -> str:
        """The precision `auto` means for a stage: `fp32`, `bf16` or `fp16`."""

    def supports(self, precision: str) -> bool:
        """Whether the device computes in that precision."""

    def capability(self) -> tuple[int, int] | None:
        """The compute capability of a CUDA device; None of any other."""

    def mark(self) -> Any:
        """A point in time on the device, read later by `elapsed_ms`."""

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two marks; valid once `synchronize` has run after the second."""

    def synchronize(self) -> None:
        """Waits until the device has done all it was given."""

    def reset_peak_memory(self) -> None:
        """Starts a new peak of `memory`."""

    def limit_memory(self, size: int) -> None:
        """Lets this process take no more bytes of the device than that. Raises PlanError where it has fewer."""

    def free_memory(self) -> None:
        """Gives back what nothing uses any more."""

    def memory(self) -> dict[str, float]:
        """In MiB: allocated and reserved on the device, host memory resident, and their peaks since the reset."""

    def describe(self) -> Mapping[str, object]:
        """The device for the `env` block of a dump."""

    def vendor_id(self) -> str | None:
        """The name by which nvidia-smi knows the device; None for another vendor's."""


def check_limit(size: int, total: int) -> None:
    """Raises PlanError for a budget beyond what the device has."""
    if size > total:
        gib = 2**30
        message = f"memory.budget={size / gib:.2f} GiB, and the device has {total / gib:.2f} GiB"
        raise PlanError(message, hint="use a budget that the device has, or none")


def visible(environ: Mapping[str, str]) -> str:
    """What hides devices from torch, as the end of a sentence that misses one."""
    chosen = [f"{name}={environ[name]}" for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES") if name in environ]
    return f" ({', '.join(chosen)})" if chosen else ""


def current(name: str) -> Platform:
    """The platform for `launch.device`. `auto` takes CUDA, then MPS, then the CPU. Raises PlanError."""
    from difftool.platforms.cpu import CpuPlatform
    from difftool.platforms.cuda import CudaPlatform
    from difftool.platforms.mps import MpsPlatform

    present = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}
    kinds = {"cuda": CudaPlatform, "mps": MpsPlatform, "cpu": CpuPlatform}
    if name == "auto":
        name = next(kind for kind, available in present.items() if available())
    if not present[name]():
        raise PlanError(
            f"launch.device is {name}, but torch {torch.__version__} finds no {name} device here{visible(os.environ)}",
            hint="use --device cpu, or a torch build for this machine's accelerator",
        )
    return kinds[name]()

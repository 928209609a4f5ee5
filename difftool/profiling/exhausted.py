"""Memory that ran out, told with what was held, what was asked for, and what to change."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from difftool.errors import OutOfMemoryError
from difftool.planning.plan import Plan
from difftool.planning.remedies import remedies
from difftool.platforms.base import Platform

GIB = 1024  # MiB
# how torch's allocators say what they were asked for: of CUDA and MPS, and of the CPU
ASKED = re.compile(r"[Tt]ried to allocate (?P<number>[\d.]+) (?P<unit>GiB|MiB|KiB|GB|MB|KB|bytes)")
UNITS = {"bytes": 1 / 2**20, "K": 1 / 2**10, "M": 1.0, "G": float(GIB)}


def ran_out(error: BaseException) -> bool:
    """Whether the device or the host ran out, in any of the ways torch says so."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Place(Protocol):
    """What follows a run: the stage and the item that it has reached."""

    stage: str | None
    item: int | None


@contextmanager
def memory_told(plan: Plan, platform: Platform, place: Place) -> Iterator[None]:
    """Raises OutOfMemoryError in place of torch's own. `place` knows where the run is."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        item = None if place.item is None else plan.items[place.item]
        message = _message(platform, _asked_mb(error))
        raise OutOfMemoryError(message, hint=remedies(plan, place.stage, platform.name, item)) from error


def _message(platform: Platform, asked: float | None) -> str:
    memory, device = platform.memory(), platform.describe()
    held, peak = (memory.get(f"{of}allocated_mb", memory[f"{of}host_mb"]) for of in ("", "peak_"))
    total = device.get("memory_mb")
    of_all = f" of {_gib(total)}" if isinstance(total, int) else ""
    wanted = f", and {_gib(asked)} more were asked for" if asked is not None else ""
    return f"{device['name']} ran out of memory: {_gib(held)}{of_all} held, at most {_gib(peak)}{wanted}"


def _asked_mb(error: BaseException) -> float | None:
    found = ASKED.search(str(error))
    if found is None:
        return None
    unit = found["unit"]
    return float(found["number"]) * UNITS[unit if unit == "bytes" else unit[0]]


def _gib(mb: float) -> str:
    return f"{mb / GIB:.1f} GiB"

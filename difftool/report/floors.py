"""How large a change has to be to count: by the metric, and as the user says."""

import re
from dataclasses import dataclass

THRESHOLD = re.compile(r"(?P<metric>\w+)=(?P<amounts>[^=]+)")
AMOUNT = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>%|ms|s|mib|gib)", re.IGNORECASE)
MEMORY_METRICS = ("peak_memory", "peak_host_memory")
UNITS = {"ms": 1.0, "s": 1000.0, "mib": 1.0, "gib": 1024.0}  # to milliseconds and MiB
MEMORY_UNITS = ("mib", "gib")


@dataclass(frozen=True)
class Floor:
    """The least change that counts: a share of the base's median, and an amount in ms or MiB; both must be reached."""

    relative: float
    absolute: float


STAGE = Floor(0.10, 2.0)
MEMORY = Floor(0.01, 16.0)
FLOORS = {
    "total": Floor(0.03, 5.0),
    "denoising": Floor(0.03, 2.0),
    "decoding": Floor(0.05, 2.0),
    "step": Floor(0.03, 2.0),
    "save": Floor(0.10, 5.0),
    "load": Floor(0.15, 100.0),
    "peak_memory": MEMORY,
    "peak_host_memory": Floor(0.05, 64.0),  # it follows what the allocator and the page cache did before
}


def default_floor(metric: str) -> Floor:
    """The floor of a metric that nobody set."""
    return FLOORS.get(metric, STAGE)


def is_memory(metric: str) -> bool:
    return metric in MEMORY_METRICS


def parse_threshold(text: str) -> tuple[str, Floor]:
    """`total=3%,50ms` -> the metric and its floor; what is left out is 0. Raises ValueError with what is wrong."""
    found = THRESHOLD.fullmatch(text.strip())
    if found is None:
        raise ValueError("is not METRIC=AMOUNT, such as total=3% or total=3%,50ms")
    metric, relative, absolute = found["metric"], None, None
    for part in found["amounts"].split(","):
        amount = AMOUNT.fullmatch(part.strip())
        if amount is None:
            raise ValueError(f"{part.strip()!r} is no amount; use a number with %, ms, s, MiB or GiB")
        number, unit = float(amount["number"]), amount["unit"].lower()
        if unit == "%" and relative is None:
            relative = number / 100
        elif unit != "%" and absolute is None:
            _check_unit(metric, unit, part.strip())
            absolute = number * UNITS[unit]
        else:
            raise ValueError("says the same twice; use one share and one amount")
    return metric, Floor(relative or 0.0, absolute or 0.0)


def _check_unit(metric: str, unit: str, part: str) -> None:
    if is_memory(metric) != (unit in MEMORY_UNITS):
        wanted = "MiB or GiB" if is_memory(metric) else "ms or s"
        raise ValueError(f"{part} is no amount of {metric}; use {wanted}")

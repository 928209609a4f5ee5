"""Raw samples to the numbers of a summary."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from difftool.report.perf import Sample, Summary

TAIL = 0.025  # of each side of a 95 % interval
# one number for the items and steps of a run; where nothing is said, their mean
OF_A_RUN: Mapping[str, Callable[[Sequence[float]], float]] = {
    "step": statistics.median,
    "peak_memory": max,
    "peak_host_memory": max,
}


def readings(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Every metric of the one vocabulary that the samples hold, stages first, each with all its readings.

    A sample that used an earlier item's text encoding again is no reading of `text_encoding`.
    """
    names = dict.fromkeys(name for sample in samples for name in sample.stages_ms)
    values = {name: [s.stages_ms[name] for s in samples if name in s.stages_ms] for name in names}
    if "text_encoding" in values:
        values["text_encoding"] = [
            s.stages_ms["text_encoding"] for s in samples if "text_encoding" in s.stages_ms and not s.reused
        ]
    values["step"] = [step.duration_ms for s in samples for step in s.denoise_steps_ms]
    values["save"] = [s.save_ms for s in samples if s.outputs]
    values["total"] = [s.total_ms for s in samples]
    values["peak_memory"] = [s.peak_memory_mb for s in samples]
    values["peak_host_memory"] = [s.peak_host_memory_mb for s in samples]
    return {name: numbers for name, numbers in values.items() if numbers}


def run_readings(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """The readings of a metric that are independent of each other: one a repeat, over its items and steps.

    A repeat that lacks an item is no reading.
    """
    repeats: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        repeats[sample.repeat].append(sample)
    items = max(map(len, repeats.values()))
    found: dict[str, list[float]] = defaultdict(list)
    for number in sorted(repeats):
        if len(repeats[number]) == items:
            for name, values in readings(repeats[number]).items():
                found[name].append(OF_A_RUN.get(name, statistics.fmean)(values))
    return found


def median_index(totals: Sequence[float]) -> int:
    """Which sample stands for all: the (lower) median by total time."""
    order = sorted(range(len(totals)), key=lambda i: totals[i])
    return order[(len(order) - 1) // 2]


def summarise(values: Sequence[float]) -> Summary:
    """Median with its interval, median absolute deviation, coefficient of variation in per cent, and the range."""
    middle, mean = statistics.median(values), statistics.fmean(values)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return Summary(
        n=len(values),
        median=middle,
        mad=statistics.median(abs(value - middle) for value in values),
        cv_pct=100 * spread / mean if mean else 0.0,
        ci95=median_interval(values),
        min=min(values),
        max=max(values),
    )


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Two of the readings between which the median lies with 95 % certainty or more; None for fewer than 6.

    Source: Conover 1999, 3.2: the number of readings below the median is binomial.
    """
    count, below, outside = len(values), 0.0, 0
    for k in range(count // 2):
        below += math.exp(math.log(math.comb(count, k)) - count * math.log(2))
        if below > TAIL:
            break
        outside = k + 1
    ordered = sorted(values)
    return (ordered[outside - 1], ordered[count - outside]) if outside else None

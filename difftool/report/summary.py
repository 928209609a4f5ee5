"""Raw samples to the numbers of a summary."""

import statistics
from collections.abc import Sequence

from difftool.report.perf import Sample, Summary


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


def median_index(totals: Sequence[float]) -> int:
    """Which sample stands for all: the (lower) median by total time."""
    order = sorted(range(len(totals)), key=lambda i: totals[i])
    return order[(len(order) - 1) // 2]


def summarise(values: Sequence[float]) -> Summary:
    """Median, median absolute deviation, coefficient of variation in per cent, and the range."""
    middle, mean = statistics.median(values), statistics.fmean(values)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return Summary(
        n=len(values),
        median=middle,
        mad=statistics.median(abs(value - middle) for value in values),
        cv_pct=100 * spread / mean if mean else 0.0,
        min=min(values),
        max=max(values),
    )

"""Raw samples to the numbers of a summary."""

import statistics
from collections.abc import Sequence

from difftool.report.perf import Summary


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

"""Whether a race may end before its last round: looking often must not make chance look like a change."""

from difftool.report.compare import Comparison
from difftool.report.verdict import Verdict

EARLY = 0.001  # p of a change that is believed before the end; at the end the usual level holds
MOVED = (Verdict.REGRESSED, Verdict.IMPROVED)


def is_settled(comparison: Comparison) -> bool:
    """Whether the verdict would hardly be another one after more rounds.

    Source: Haybittle 1971 and Peto 1976: interim looks at 0.001 cost the last one next to nothing.
    """
    if comparison.verdict is Verdict.INCONCLUSIVE:
        return False
    moved = [metric for metric in comparison.metrics if metric.gated and metric.verdict in MOVED]
    return all(metric.p is not None and metric.p < EARLY for metric in moved)

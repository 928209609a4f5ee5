"""What may be said of two series of readings: the words, and which of them is the worst."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """From the least to the most that a reader has to act on."""

    NO_CHANGE = "NO_CHANGE"
    IMPROVED = "IMPROVED"
    INCONCLUSIVE = "INCONCLUSIVE"
    REGRESSED = "REGRESSED"
    QUALITY_FAILED = "QUALITY_FAILED"
    INCOMPARABLE = "INCOMPARABLE"


class Reason(StrEnum):
    """Why a metric is INCONCLUSIVE."""

    TOO_FEW_SAMPLES = "too_few_samples"
    NOISY = "noisy"
    WIDE = "wide"


@dataclass(frozen=True)
class Series:
    """Readings of one metric, in ms or MiB. `per_run` has one for each repeat: other items of a run add no certainty.

    `only_one` says why `--repeats` adds no run to it; empty where it does.
    """

    values: tuple[float, ...]
    per_run: tuple[float, ...]
    only_one: str = ""

    @property
    def runs(self) -> int:
        return len(self.per_run)


@dataclass(frozen=True)
class Judgement:
    """A verdict with what it rests on, and for INCONCLUSIVE its reason with what to do about it.

    `interval` is the 95 % interval of the ratio and `p` the corrected one; None where nothing could be tested.
    `floor` is the least change that counts, in the metric's unit.
    """

    verdict: Verdict
    reason: Reason | None
    detail: str
    interval: tuple[float, float] | None = None
    p: float | None = None
    floor: float | None = None


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The overall verdict; NO_CHANGE of nothing."""
    order = list(Verdict)
    return max(verdicts, key=order.index, default=Verdict.NO_CHANGE)

"""What may be said of two series of readings: the verdicts, and the one function that gives them."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

# a side; then the least p of an exact one-sided Mann-Whitney test is 1/924, and one spiked run hides nothing
ENOUGH_RUNS = 6


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
    NO_INTERVAL = "no_interval"


@dataclass(frozen=True)
class Series:
    """Readings of one metric, in ms or MiB. `runs` counts repeats of the same item: other items add no certainty.

    `only_one` says why `--repeats` adds no run to it; empty where it does.
    """

    values: tuple[float, ...]
    runs: int
    only_one: str = ""


@dataclass(frozen=True)
class Judgement:
    """A verdict, and for INCONCLUSIVE its reason with what to do about it."""

    verdict: Verdict
    reason: Reason | None
    detail: str


def judge(base: Series | None, new: Series | None) -> Judgement:
    """What the readings of one metric allow to say. None: that dump does not have the metric.

    Enough readings are not evidence yet: a change is one only where the interval of the ratio excludes chance, and
    no interval is computed here.
    """
    if base is None or new is None:
        missing = "base" if base is None else "new"
        return _inconclusive(Reason.TOO_FEW_SAMPLES, f"{missing} does not have it")
    runs = f"{base.runs} against {new.runs} run{'s' * (new.runs != 1)}"
    short = [side for side in (base, new) if side.runs < ENOUGH_RUNS]
    if short:
        remedy = next((side.only_one for side in short if side.only_one), f"use --repeats {ENOUGH_RUNS}")
        return _inconclusive(Reason.TOO_FEW_SAMPLES, f"{runs}; {remedy}")
    return _inconclusive(Reason.NO_INTERVAL, f"{runs}; the interval of the ratio is not computed yet")


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The overall verdict; NO_CHANGE of nothing."""
    order = list(Verdict)
    return max(verdicts, key=order.index, default=Verdict.NO_CHANGE)


def _inconclusive(reason: Reason, detail: str) -> Judgement:
    return Judgement(Verdict.INCONCLUSIVE, reason, detail)

"""The verdict on every metric of a pair of dumps: what its readings allow to say, and no more."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from difftool.report.floors import Floor
from difftool.report.statistics import ALPHA, can_decide, holm, missing_runs, rank_test, ratio_interval
from difftool.report.verdict import Judgement, Reason, Series, Verdict

NOISY_PCT = 5.0  # of the median, one standard deviation
NORMAL_MAD = 1.4826  # standard deviations of a normal distribution in its median absolute deviation
MANY_MORE = 40  # repeats; who would need more had better make the machine quieter


@dataclass(frozen=True)
class Pair:
    """One metric of both sides. None: that dump does not have it.

    `gated`: its verdict counts. `noise` is what sessions of the same kind differ by anyway, in the metric's unit;
    `disturbed` says what else slowed a side: then no change of this metric is believed. `raced`: the sides took turns
    in one session already.
    """

    base: Series | None
    new: Series | None
    floor: Floor
    gated: bool
    noise: float = 0.0
    disturbed: str = ""
    raced: bool = False


@dataclass(frozen=True)
class Evidence:
    """The numbers of one metric that both sides have enough runs of. `p` is of the direction that it moved in."""

    base: float
    new: float
    interval: tuple[float, float]
    p: float
    floor: float
    spread_pct: tuple[float, float]
    runs: int

    @property
    def ratio(self) -> float:
        return self.new / self.base


def judge(pairs: Mapping[str, Pair]) -> dict[str, Judgement]:
    """A verdict for each metric.

    The gated ones share ALPHA by Holm's correction; the others are held to the strictest of its levels.
    """
    tests = max(1, sum(pair.gated and _is_tested(pair) for pair in pairs.values()))
    found = {name: unable for name, pair in pairs.items() if (unable := _unable(pair, tests)) is not None}
    evidence = {name: _evidence(pair) for name, pair in pairs.items() if name not in found}
    gated = [name for name in evidence if pairs[name].gated]
    silent = [1.0] * (tests - len(gated))  # gated, and without enough runs to be tested
    corrected = dict(zip(gated, holm([evidence[name].p for name in gated] + silent), strict=False))
    for name, numbers in evidence.items():
        p = corrected.get(name, min(1.0, tests * numbers.p))
        found[name] = _judge(replace(numbers, p=p), pairs[name])
    return {name: found[name] for name in pairs}


def _is_tested(pair: Pair) -> bool:
    return pair.base is not None and pair.new is not None and not _is_small(pair.base, pair.new, pair.floor)


def _is_small(base: Series, new: Series, floor: Floor) -> bool:
    """Whether no change between such readings could reach the floor."""
    return max(*base.per_run, *new.per_run) < floor.absolute


def _unable(pair: Pair, tests: int) -> Judgement | None:
    """The judgement of a metric that cannot be tested, or needs no test."""
    base, new, floor = pair.base, pair.new, pair.floor
    if base is None or new is None:
        missing = "base" if base is None else "new"
        return _inconclusive(Reason.TOO_FEW_SAMPLES, f"{missing} does not have it")
    if not can_decide(base.runs, new.runs, tests):
        return _inconclusive(Reason.TOO_FEW_SAMPLES, _more_runs(base, new, tests))
    if _is_small(base, new, floor):
        detail = f"never as much as {floor.absolute:g}, which is the least that counts"
        return Judgement(Verdict.NO_CHANGE, None, detail, floor=floor.absolute)
    if min(base.per_run) <= 0:
        return _inconclusive(Reason.WIDE, "base is 0 in a run, so there is no ratio")
    return None


def _more_runs(base: Series, new: Series, tests: int) -> str:
    runs = f"{base.runs} against {new.runs} run{'s' * (new.runs != 1)}"
    more = missing_runs(base.runs, new.runs, tests)
    short = [side for side, count in zip((base, new), more, strict=True) if count]
    if reason := next((side.only_one for side in short if side.only_one), ""):
        return f"{runs}; {reason}"
    if more[0] == more[1]:
        return f"{runs}; {_repeats(more[0])} of each"
    wanted = [f"{_repeats(count)} of {side}" for side, count in zip(("base", "new"), more, strict=True) if count]
    return f"{runs}; {' and '.join(wanted)}"


def _repeats(count: int) -> str:
    return f"{count} more repeat{'s' * (count != 1)}"


def _evidence(pair: Pair) -> Evidence:
    assert pair.base is not None and pair.new is not None
    ours, theirs = pair.base.per_run, pair.new.per_run
    base, new = statistics.median(ours), statistics.median(theirs)
    return Evidence(
        base=base,
        new=new,
        interval=ratio_interval(ours, theirs),
        p=rank_test(ours, theirs) if new >= base else rank_test(theirs, ours),
        floor=max(pair.floor.relative * base, pair.floor.absolute, pair.noise),
        spread_pct=(_spread_pct(ours, base), _spread_pct(theirs, new)),
        runs=min(len(ours), len(theirs)),
    )


def _spread_pct(readings: Sequence[float], middle: float) -> float:
    """The standard deviation, in per cent of the median, of all but the outliers."""
    mad = statistics.median(abs(reading - middle) for reading in readings)
    return 100 * NORMAL_MAD * mad / middle if middle else 0.0


def _judge(found: Evidence, pair: Pair) -> Judgement:
    low, high = found.interval
    share, change = found.floor / found.base, found.new - found.base
    words = f"{_percent(found.ratio)} (95 %: {_percent(low)} to {_percent(high)}), p {found.p:.2g}"
    judged = Judgement(
        Verdict.NO_CHANGE,
        None,
        f"{words}, floor {100 * share:.1f} %",
        interval=found.interval,
        p=found.p,
        floor=found.floor,
    )
    if found.p < ALPHA and abs(change) >= found.floor and (low > 1 if change > 0 else high < 1):
        if pair.disturbed:
            detail = f"{words}; not believed, for {pair.disturbed}"
            return replace(judged, verdict=Verdict.INCONCLUSIVE, reason=Reason.NOISY, detail=detail)
        return replace(judged, verdict=Verdict.REGRESSED if change > 0 else Verdict.IMPROVED)
    if 1 - share < low and high < 1 + share:
        return judged
    reason, remedy = _remedy(found, raced=pair.raced)
    return replace(judged, verdict=Verdict.INCONCLUSIVE, reason=reason, detail=f"{judged.detail}; {remedy}")


def _remedy(found: Evidence, *, raced: bool) -> tuple[Reason, str]:
    """What would decide: less noise, or as many runs as shrink the interval to one side of the floor."""
    side, spread = max(zip(("base", "new"), found.spread_pct, strict=True), key=lambda entry: entry[1])
    more = _wanted_runs(found)
    enough = f"{_repeats(more)} of each" if more <= MANY_MORE else None
    if spread > NOISY_PCT:
        way = (enough or "set a larger floor with --threshold") if raced else "race both with difftool bench"
        return Reason.NOISY, f"{side} varies by {spread:.1f} %: quieten the machine, or {way}"
    return Reason.WIDE, enough or "the change is about as large as the floor: set another with --threshold"


def _wanted_runs(found: Evidence) -> int:
    """How many more runs a side: the interval shrinks with their square root."""
    low, high = found.interval
    room = abs(abs(found.ratio - 1) - found.floor / found.base)
    needed = found.runs * ((high - low) / 2 / room) ** 2 if room else math.inf
    return max(1, math.ceil(min(needed, 10 * MANY_MORE)) - found.runs)


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _inconclusive(reason: Reason, detail: str) -> Judgement:
    return Judgement(Verdict.INCONCLUSIVE, reason, detail)

"""What chance alone could have done: the interval of a ratio, the exact rank test, and Holm's correction."""

import math
from collections.abc import Sequence
from statistics import NormalDist

ALPHA = 0.01  # a gate runs on every change: one false alarm in a hundred, and not one in twenty
FEWEST_RUNS = 3  # a side; the median of fewer has nothing to lean on
RESAMPLES = 10_000
SEED = 20_251_121
CONFIDENCE_PCT = 95
EXACT_UP_TO = 50  # runs a side; the normal approximation is right to three digits from there


def ratio_interval(base: Sequence[float], new: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of median(new) / median(base), of readings above 0, by a seeded bootstrap's percentiles.

    Source: Efron and Tibshirani 1993, chapter 13.
    """
    import numpy as np

    random = np.random.default_rng(SEED)
    ours, theirs = (np.median(random.choice(side, (RESAMPLES, len(side))), axis=1) for side in (base, new))
    tail = (100 - CONFIDENCE_PCT) / 2
    low, high = np.percentile(theirs / ours, [tail, 100 - tail])
    return float(low), float(high)


def rank_test(base: Sequence[float], new: Sequence[float]) -> float:
    """p of the one-sided Mann-Whitney test that `new` is larger; exact, with ties too.

    It is the share of all ways to deal the readings out to the two sides in which the new ones rank as high, or higher.
    """
    import numpy as np

    both = np.sort([*base, *new])
    twice = np.searchsorted(both, both, "left") + np.searchsorted(both, both, "right") + 1  # twice the middle rank
    seen = int(twice[np.searchsorted(both, new)].sum())
    if max(len(base), len(new)) > EXACT_UP_TO:
        return _approximate(twice.tolist(), seen, len(base), len(new))
    ways = np.zeros((len(new) + 1, int(twice.sum()) + 1))  # by how many are dealt to the new side, and their sum
    ways[0, 0] = 1
    for rank in twice:
        ways[1:, rank:] += ways[:-1, :-rank].copy()
    return float(ways[-1, seen:].sum() / ways[-1].sum())


def _approximate(twice: Sequence[int], seen: int, base: int, new: int) -> float:
    """The same p by the normal distribution, with corrections for continuity and ties. Source: Lehmann 1975, 1.4."""
    total = base + new
    ties = sum(count**3 - count for count in (twice.count(rank) for rank in set(twice)))
    variance = base * new / 12 * (total + 1 - ties / (total * (total - 1)))
    above = seen / 2 - new * (total + 1) / 2
    return NormalDist().cdf(-(above - 0.5) / math.sqrt(variance)) if variance else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """Each p as if it were the only one: so that of all of them together, chance passes a level as seldom.

    Source: Holm 1979.
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    found, highest = [0.0] * len(ps), 0.0
    for done, i in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - done) * ps[i]))
        found[i] = highest
    return found


def can_decide(base_runs: int, new_runs: int, tests: int) -> bool:
    """Whether the clearest outcome that so many runs can have would pass, as the first of so many tests."""
    least_p = 1 / math.comb(base_runs + new_runs, new_runs)
    return min(base_runs, new_runs) >= FEWEST_RUNS and tests * least_p < ALPHA


def missing_runs(base_runs: int, new_runs: int, tests: int) -> tuple[int, int]:
    """How many more runs of base and new could decide: the side that has fewer gets them first."""
    base, new = base_runs, new_runs
    while not can_decide(base, new, tests):
        base, new = base + (base <= new), new + (new <= base)
    return base - base_runs, new - new_runs

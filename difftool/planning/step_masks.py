"""Step computation masks: which denoising steps are computed and which may reuse what an earlier step computed.

A mask is a text with a character a step: 1 is computed, 0 may be taken from the cache.
"""

from collections.abc import Mapping, Sequence
from typing import Any

FEWEST_STEPS = 8  # a mask of fewer has nothing to choose from
RATIOS = {"slow": 0.75, "medium": 0.5, "fast": 0.35, "ultra": 0.25}  # computed steps among all, as near as can be

# cache-dit's own runs of steps, computed and cached in turn, for so many steps. Source: `steps_mask` of cache-dit 1.5.
Bins = tuple[tuple[int, ...], tuple[int, ...]]
LONG, SHORT = 28, 15
CACHE_DIT: Mapping[int, Mapping[str, Bins]] = {
    LONG: {
        "slow": ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)),
        "medium": ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
        "fast": ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)),
        "ultra": ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
    },
    SHORT: {
        "slow": ((4, 2, 2, 2, 1), (1, 1, 1, 1)),
        "medium": ((4, 2, 1, 1, 1), (1, 1, 2, 2)),
        "fast": ((3, 1, 1, 1, 1), (1, 2, 2, 3)),
        "ultra": ((2, 1, 1, 1, 1), (1, 2, 3, 3)),
    },
    9: {
        "slow": ((5, 2, 1), (1,)),
        "medium": ((5, 1, 1), (1, 1)),
        "fast": ((4, 1, 1), (1, 2)),
        "ultra": ((3, 1, 1), (2, 2)),
    },
    8: {
        "slow": ((5, 1, 1), (1,)),
        "medium": ((4, 1, 1), (1, 1)),
        "fast": ((3, 1, 1), (1, 2)),
        "ultra": ((2, 1, 1), (2, 2)),
    },
}


def is_masked(scm: Mapping[str, Any]) -> bool:
    """Whether `cache.scm` asks for a mask."""
    return scm["preset"] != "none" or bool(scm["compute_bins"])


def step_mask(scm: Mapping[str, Any], steps: int, *, warmup: int) -> str | None:
    """The mask that `cache.scm` asks for, of at least `FEWEST_STEPS` steps; None where it asks for none.

    `warmup` is `cache.max_warmup_steps`. Bins are taken as they are: whether they sum to the steps is checked before.
    """
    if not is_masked(scm):
        return None
    assert steps >= FEWEST_STEPS, steps
    if scm["compute_bins"]:
        return _runs(scm["compute_bins"], scm["cache_bins"])
    if scm["compat"] == "cache-dit":
        return _cache_dit_mask(scm["preset"], steps)
    return _even_mask(RATIOS[scm["preset"]], steps, warmup=warmup)


def _even_mask(ratio: float, steps: int, *, warmup: int) -> str:
    """The first `warmup` steps, but at most half of what is computed, then cached steps in runs as even as can be,
    each of them ended by a computed step; the last one is the last step.
    """
    computed = max(2, int(ratio * steps + 0.5))
    first = max(1, min(warmup, computed // 2))
    rest, cached = computed - first, steps - computed
    runs = [cached * (i + 1) // rest - cached * i // rest for i in range(rest)]
    return "1" * first + "".join("0" * run + "1" for run in runs)


def _cache_dit_mask(preset: str, steps: int) -> str:
    """cache-dit's, whose last step is computed whatever its bins say."""
    size = LONG if steps > SHORT else SHORT if steps > 9 else steps
    compute, cache = (list(bins) for bins in CACHE_DIT[size][preset])
    _lengthen(compute, cache, steps)
    _shorten(compute, cache, steps)
    return _runs(compute, cache)[: steps - 1] + "1"


def _lengthen(compute: list[int], cache: list[int], steps: int) -> None:
    """Adds to one bin after the other, by what it had, until there are enough steps."""
    factor, pairs = steps / LONG * 0.5, min(len(compute), len(cache))
    turns = [(bins, i, max(int(bins[i] * factor), 1)) for i in range(pairs) for bins in (compute, cache)]
    turns.append((compute, -1, 1))
    while True:
        for bins, i, more in turns:
            if sum(compute) + sum(cache) >= steps:
                return
            bins[i] += more


def _shorten(compute: list[int], cache: list[int], steps: int) -> None:
    """Takes from the ends of both, in turn, until there are as many."""
    bins, other = cache, compute
    while sum(compute) + sum(cache) > steps:
        if bins:
            bins[-1] -= 1
        if bins and not bins[-1]:
            bins.pop()
        bins, other = other, bins


def _runs(compute: Sequence[int], cache: Sequence[int]) -> str:
    """Runs of computed and cached steps in turn; what is left of the longer list comes at the end."""
    pairs = max(len(compute), len(cache))
    padded = (tuple(bins) + (0,) * (pairs - len(bins)) for bins in (compute, cache))
    return "".join("1" * computed + "0" * cached for computed, cached in zip(*padded, strict=True))

"""What ranks that share a denoiser's weights must have in common: they gather them together, forward by forward."""

from collections.abc import Mapping, Sequence
from typing import Any

from difftool.errors import Problem
from difftool.facts import SEQUENCE, FamilyFacts
from difftool.planning.degrees import divisors
from difftool.planning.plan import Degrees, Item

KEY = "parallel.hsdp"
# what decides how many forwards a request runs; sizes do where a step's time, which may follow them, decides
ALIKE = ("num_inference_steps", "scheduler", "boundary_ratio", "extra")
SIZES = ("height", "width", "num_frames")


def check_sharing(degrees: Degrees, items: Sequence[Item], facts: FamilyFacts) -> list[Problem]:
    """Why these ranks cannot share weights for these items; nothing where they do not."""
    if degrees.hsdp == "none":
        return []
    if message := _illegal(degrees, facts) or _unequal(degrees, items, facts):
        return [Problem(KEY, f"parallel.hsdp={degrees.hsdp}{message}")]
    return []


def _illegal(degrees: Degrees, facts: FamilyFacts) -> str:
    """What no request makes right."""
    ranks, sharing = degrees.num_gpus, degrees.sharing
    if not set(SEQUENCE) & set(facts.axes):
        return f": {facts.title} has no blocks that are known to be sharded; use hsdp=none"
    if sharing == 1:
        return ": one rank has nobody to share weights with; use num_gpus=2 or more, or hsdp=none"
    if ranks % sharing:
        valid = ", ".join(str(d) for d in divisors(ranks)[1:])
        return f" does not divide num_gpus={ranks}; valid: {valid}"
    return ""


def _unequal(degrees: Degrees, items: Sequence[Item], facts: FamilyFacts) -> str:
    """What makes some of the ranks run other forwards than the rest, which would wait for them forever."""
    values, own = [item.sampling for item in items], degrees.ring * degrees.ulysses
    if degrees.cfg > 1 and own % degrees.sharing and any(_skips(each, facts) for each in values):
        inside = f"hsdp={own}" if own > 1 else "hsdp=none"
        return f": sampling.extra.{facts.third_branch} has a branch that runs fewer blocks; use cfg=1, or {inside}"
    if (degrees.num_gpus // degrees.dp) % degrees.sharing == 0:
        return ""  # replicas have copies of their own
    for first, other in zip(values, values[1:], strict=False):
        if unlike := _unlike(first, other, facts):
            shares = "replicas share weights, so their items must run equally many forwards"
            return f": {shares}, and {unlike} differs; give it all items alike, or use hsdp=none"
    return ""


def _unlike(first: Mapping[str, Any], other: Mapping[str, Any], facts: FamilyFacts) -> str:
    """The first key in which two requests differ that decides about forwards."""
    timed = any(each.get("boundary_ratio") is not None or each.get("extra") for each in (first, other))
    for key in (*ALIKE, *(SIZES if timed else ())):
        if first.get(key) != other.get(key):
            return f"sampling.{key}"
    if facts.branches(first) != facts.branches(other):
        return f"sampling.{facts.second_branch}, or whether there is a negative prompt,"
    return ""


def _skips(values: Mapping[str, Any], facts: FamilyFacts) -> bool:
    return bool((values.get("extra") or {}).get(facts.third_branch))

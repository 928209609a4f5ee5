"""Solves the parallel degrees: the product of dp, cfg, ring, ulysses and tp is num_gpus."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from difftool.errors import Problem
from difftool.facts import AXES, SEQUENCE
from difftool.planning.plan import Degrees

Word = int | str  # a number, or the word auto


@dataclass(frozen=True)
class Asked:
    """The recipe's `parallel` section with what the request and the model allow: its branches; its heads (None:
    unknown) and the axes it can be split along.
    """

    num_gpus: Word
    dp: int
    cfg: Word
    sp: Word
    ulysses: Word
    ring: Word
    tp: int
    hsdp: str | int
    heads: int | None
    branches: int
    axes: tuple[str, ...]


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def solve(asked: Asked) -> Degrees | list[Problem]:
    """The degrees, or what is wrong with the request. `auto`: cfg 2 where it pays, then Ulysses, then ring."""
    if problems := _illegal(asked):
        return problems
    axes = (asked.dp, asked.cfg, asked.sp, asked.ulysses, asked.ring, asked.tp)
    only_hsdp = asked.hsdp != "none" and all(degree in (1, "auto") for degree in axes)
    for dp, cfg, ulysses, ring in _candidates(asked, only_hsdp):
        ranks = dp * cfg * ulysses * ring * asked.tp
        divides = asked.heads is None or asked.heads % (ulysses * asked.tp) == 0
        if divides and asked.num_gpus in ("auto", ranks) and asked.sp in ("auto", ulysses * ring):
            return Degrees(num_gpus=ranks, dp=dp, cfg=cfg, ring=ring, ulysses=ulysses, tp=asked.tp, hsdp=asked.hsdp)
    return [_does_not_multiply(asked)]


def _candidates(asked: Asked, only_hsdp: bool) -> list[tuple[int, int, int, int]]:
    """Choices of (dp, cfg, ulysses, ring) in order of preference."""
    world = asked.num_gpus if isinstance(asked.num_gpus, int) else None
    if only_hsdp and world is not None:
        return [(world, 1, 1, 1)]
    sequence = asked.sp if isinstance(asked.sp, int) else None
    limit = world or sequence or 1
    degrees = divisors(limit)
    free = {
        "cfg": [2, 1] if world is not None and asked.branches > 1 else [1],
        "ulysses": degrees[::-1],
        "ring": degrees,
    }
    for axis in free:
        if isinstance(fixed := getattr(asked, axis), int):
            free[axis] = [fixed]
        elif axis not in asked.axes:
            free[axis] = [1]
    return [(asked.dp, cfg, u, r) for cfg, u, r in product(*free.values())]


def _illegal(asked: Asked) -> list[Problem]:
    """Values that no number of ranks makes right."""
    problems = [
        Problem(
            f"parallel.{axis}",
            f"parallel.{axis}={value}: this model is split along {', '.join(asked.axes)} alone; use {axis}=1",
        )
        for axis in AXES
        if isinstance(value := getattr(asked, axis), int) and value > 1 and axis not in asked.axes
    ]
    if asked.heads is not None and isinstance(asked.ulysses, int) and asked.heads % asked.ulysses:
        valid = ", ".join(str(d) for d in divisors(asked.heads))
        problems.append(
            Problem(
                "parallel.ulysses",
                f"parallel.ulysses={asked.ulysses} does not divide {asked.heads} attention heads; valid: {valid}",
            )
        )
    if asked.heads is not None and asked.heads % asked.tp:
        valid = ", ".join(str(d) for d in divisors(asked.heads))
        problems.append(
            Problem(
                "parallel.tp", f"parallel.tp={asked.tp} does not divide {asked.heads} attention heads; valid: {valid}"
            )
        )
    if not problems and asked.heads is not None and isinstance(asked.ulysses, int):
        share = asked.ulysses * asked.tp
        if asked.heads % share:
            each = [str(d) for d in divisors(asked.heads) if asked.heads % (d * asked.tp) == 0]
            valid = " or ".join(filter(None, [", ".join(each[:-1]), each[-1]]))
            message = f"parallel.ulysses={asked.ulysses} and tp={asked.tp} share {asked.heads} attention heads"
            problems.append(Problem("parallel.ulysses", f"{message} among {share}; use ulysses={valid}"))
    if isinstance(asked.cfg, int) and asked.cfg > asked.branches:
        one = "one guidance branch; use cfg=1, or give a negative prompt with a guidance that uses it"
        runs = one if asked.branches == 1 else f"{asked.branches} guidance branches; use cfg={asked.branches}"
        problems.append(Problem("parallel.cfg", f"parallel.cfg={asked.cfg}, but this request runs {runs}"))
    fixed = [v for v in (asked.ulysses, asked.ring) if isinstance(v, int)]
    if isinstance(asked.sp, int) and len(fixed) == 2 and fixed[0] * fixed[1] != asked.sp:
        problems.append(
            Problem(
                "parallel.sp",
                f"parallel.sp={asked.sp} but ulysses·ring = {fixed[0]}·{fixed[1]} = {fixed[0] * fixed[1]}; "
                "free one of them (auto)",
            )
        )
    return problems


def _does_not_multiply(asked: Asked) -> Problem:
    """Names the keys that are fixed, their product, and a change that works."""
    if not {*SEQUENCE, "tp"} & set(asked.axes):
        alone = f"this model is split along {', '.join(asked.axes)} alone"
        way_out = f"use dp={asked.num_gpus}, a replica on each rank"
        return Problem("parallel", f"parallel: num_gpus={asked.num_gpus}, and {alone}; {way_out}")
    fixed: Mapping[str, int] = {
        axis: value
        for axis in ("dp", "cfg", "ulysses", "ring", "tp")
        if isinstance(value := getattr(asked, axis), int) and value > 1
    }
    if isinstance(asked.sp, int) and not {"ulysses", "ring"} & fixed.keys():
        fixed = {**fixed, "sp": asked.sp}
    total = 1
    for value in fixed.values():
        total *= value
    names, numbers = "·".join(fixed) or "the degrees", "·".join(str(v) for v in fixed.values()) or "1"
    equation = f"{names} = {numbers} = {total}" if len(fixed) > 1 else f"{names} = {total}"
    assert isinstance(asked.num_gpus, int), asked
    way_out = f"free one of them (auto), or use {_nearest_change(asked, fixed, total)}"
    return Problem("parallel", f"parallel: num_gpus={asked.num_gpus} but {equation}; {way_out}")


def _nearest_change(asked: Asked, fixed: Mapping[str, int], total: int) -> str:
    """A single value that makes the product right: of an axis if one can, else of num_gpus."""
    assert isinstance(asked.num_gpus, int)
    for axis in ("ulysses", "ring", "sp", "dp", "tp"):
        rest = total // fixed.get(axis, total)
        if axis in fixed and asked.num_gpus % rest == 0:
            value = asked.num_gpus // rest
            if axis not in ("ulysses", "tp") or asked.heads is None or asked.heads % value == 0:
                return f"{axis}={value}"
    return f"num_gpus={total}"

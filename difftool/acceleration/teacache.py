"""TeaCache: the blocks are skipped while the modulated input of the first one has hardly changed.

The first block of a forward always runs, as what its attention is given is the modulated input. Its relative change
from the step before, scaled by a polynomial, is added up; below the threshold the other blocks are skipped, and what
they added when they last ran is added instead. Source: Liu et al. 2024, "Timestep Embedding Tells: It's Time to Cache
for Video Diffusion Model", and the TeaCache repository, whose first block is skipped too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from difftool.acceleration.cache import Call, StepLog
from difftool.acceleration.exchange import Counted, Exchange
from difftool.acceleration.plans import CachePlan, Makes
from difftool.parallel.mesh import Line

States = tuple[Tensor | None, ...]  # of the image and, of some blocks, of the text


@dataclass
class Kept:
    """What one call of a step leaves for the next steps: what each list added when it ran, and the modulated input."""

    added: dict[str, States] = field(default_factory=dict)
    modulated: Tensor | None = None
    made: Tensor | None = None


class InputCache:
    """The cache of one denoiser: see `cache.DenoiserCache`. A threshold of 0 reuses nothing, and measures how much the
    output of the blocks changed beside their input.
    """

    mask = None

    def __init__(
        self,
        transformer: nn.Module,
        plan: CachePlan,
        *,
        threshold: float,
        coefficients: Sequence[float],
        line: Line,
    ):
        """`coefficients` of the polynomial, highest power first."""
        found = {key: transformer.get_submodule(key) for key in plan.blocks}
        self.lists = {key: len(blocks) for key, blocks in found.items()}
        self.log: list[StepLog] = []
        self._threshold, self._coefficients, self._line = threshold, tuple(coefficients), line
        self._kept: dict[tuple[str, ...], Kept] = {}
        self._sum, self._step, self._call, self._reuses = 0.0, 0, Call((), ""), False
        first, self._last = next(iter(found)), list(found)[-1]
        self._exchange = Exchange(
            transformer,
            {key: Skipping(blocks, plan.blocks[key], key, self, leads=key == first) for key, blocks in found.items()},
        )
        self.stand_ins = self._exchange.stand_ins
        attention = found[first][0].get_submodule(plan.attention)
        self._handle = attention.register_forward_pre_hook(self._judge, with_kwargs=True)

    def begin(self, steps: int) -> None:
        self.log[:] = [StepLog() for _ in range(steps)]
        self.renew()

    def renew(self) -> None:
        self._kept.clear()
        self._sum = 0.0

    def forward(self, step: int, call: Call) -> None:
        self._step, self._call = step, call
        self.log[step].forwards += 1
        self._kept.setdefault(call.names, Kept())

    def remove(self) -> None:
        self._exchange.remove()
        self._handle.remove()
        self.renew()

    @property
    def kept(self) -> Kept:
        """That of the call that runs."""
        return self._kept[self._call.names]

    def count(self, key: str) -> None:
        """A block of this list runs."""
        self.log[self._step].ran[key] += 1

    def reusable(self, key: str) -> States | None:
        """What the list added before, where this step adds it again."""
        return self.kept.added.get(key) if self._reuses else None

    def keep(self, key: str, before: States, after: States) -> None:
        """What the list added in a step that ran."""
        self.kept.added[key] = tuple(
            None if one is None or other is None else other - one for one, other in zip(before, after, strict=True)
        )
        if key == self._last and self._threshold == 0 and self._call.first:
            made, self.kept.made = self.kept.made, after[0]
            self.log[self._step].output = None if made is None else self._change(made, after[0])

    @torch.compiler.disable  # in the graph of a compiled block every step would look like the first
    def _judge(self, attention: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Whether this step reuses: its first call decides, and every rank of a replica asks it alike."""
        if not self._call.first:
            return
        now = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        before, self.kept.modulated = self.kept.modulated, now
        change = None if before is None else self._change(before, now)
        if change is not None:
            self.log[self._step].changes[next(iter(self.lists))] = change
        self._sum += math.inf if change is None else abs(_polynomial(self._coefficients, change))
        last = self._step == len(self.log) - 1
        self._reuses = self._sum < self._threshold and not last
        if not self._reuses:
            self._sum = 0.0

    def _change(self, before: Tensor, now: Tensor) -> float | None:
        """sum |before - now| / sum |before| over the tokens of all ranks of the replica, of the branch that judges."""
        one, other = (self._call.judged(states).float() for states in (before, now))
        sums = torch.stack([(one - other).abs().sum(), one.abs().sum()]) * float(self._call.judges)
        change, size = self._line.all_reduce(sums).tolist()
        return change / size if size and math.isfinite(change) else None


def _polynomial(coefficients: Sequence[float], at: float) -> float:
    """Highest power first."""
    total = 0.0
    for coefficient in coefficients:
        total = total * at + coefficient
    return total


class Skipping(nn.Module):
    """In the place of a list's blocks: runs them, or adds what they added before. Of the list that `leads`, the first
    block always runs.
    """

    def __init__(self, blocks: nn.Module, makes: Makes, key: str, cache: InputCache, *, leads: bool):
        super().__init__()
        self.blocks = nn.ModuleList([Counted(block, partial(cache.count, key)) for block in blocks])
        self._order = tuple(makes.split(", "))
        self._key, self._cache, self._leads = key, cache, leads

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        states, run = self._taken(list(args), kwargs)
        rest = list(self.blocks)
        if self._leads:
            states = run(rest.pop(0), states)
        added = self._cache.reusable(self._key)
        if added is not None:
            states = tuple(
                one if one is None or more is None else one + more for one, more in zip(states, added, strict=True)
            )
        else:
            before = states
            for block in rest:
                states = run(block, states)
            self._cache.keep(self._key, before, states)
        named = dict(zip(("image", "text"), states, strict=False))
        made = tuple(named[name] for name in self._order)
        return made if len(made) > 1 else made[0]

    def _taken(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[States, Callable[[nn.Module, States], States]]:
        """The states among a block's arguments, and how a block is run with others in their place."""
        names = ("hidden_states", "encoder_hidden_states")[: len(self._order)]
        given = tuple(kwargs.pop(name) if name in kwargs else args.pop(0) for name in names)

        def run(block: nn.Module, states: States) -> States:
            made = block(*states, *args, **kwargs)
            named = dict(zip(self._order, made if len(self._order) > 1 else (made,), strict=True))
            return tuple(named[name] for name in ("image", "text")[: len(self._order)])

        return given, run

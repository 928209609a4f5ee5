"""Reuse of features between denoising steps: a cache for each denoiser, told of every forward, and what was used of it.

A step is judged once, by its first forward and there by the first branch (the positive one); the others follow. So the
same steps are reused whether the branches share a batch, follow each other or have a rank each.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from difftool.acceleration.library import INSTALL, is_installed, load_dbcache
from difftool.acceleration.plans import CachePlan
from difftool.facts import Applied, Refused, TeaCacheFit
from difftool.parallel.mesh import Mesh
from difftool.parallel.plans import SequencePlan
from difftool.planning.step_masks import is_masked
from difftool.planning.teacache import tea_settings, unpublished
from difftool.report.reuse import CacheUse, DenoiserUse

SECOND = "transformer_2"  # the denoiser that `cache.secondary` is for


@dataclass(frozen=True)
class Call:
    """One forward of a denoiser: the branches in its batch, and the one that judges the step. `first` of the step's
    forwards; where every branch has a rank of its own, that is all of them.
    """

    names: tuple[str, ...]
    judge: str
    first: bool = True

    @property
    def judges(self) -> bool:
        """Whether this rank has the states that the step is judged by."""
        return self.judge in self.names

    def judged(self, states: Tensor) -> Tensor:
        """Those of the branch that judges, of all that are in the batch."""
        return states.chunk(len(self.names))[self.names.index(self.judge)] if self.judges else states


@dataclass
class StepLog:
    """One step of a denoiser: its forwards, how many blocks of each list ran in them, and the change that was seen, of
    what the lists are judged by and, where that is measured, of what the blocks made.
    """

    forwards: int = 0
    ran: Counter[str] = field(default_factory=Counter)
    changes: dict[str, float] = field(default_factory=dict)
    output: float | None = None


class DenoiserCache(Protocol):
    """The cache of one denoiser. `lists` are the block lists of which it may skip some, with their lengths; `log` has
    an entry for each of its own steps of this generation, `mask` says which of them it may reuse, if that was asked.
    `stand_ins` are called in the place of the lists' blocks.
    """

    lists: Mapping[str, int]
    log: list[StepLog]
    mask: str | None
    stand_ins: Mapping[str, nn.Module]

    def begin(self, steps: int) -> None:
        """Forgets the generation before; this one has so many steps of this denoiser."""

    def renew(self) -> None:
        """Forgets what was computed in this generation, not how far it is."""

    def forward(self, step: int, call: Call) -> None:
        """The next forward is this one, in the denoiser's own step."""

    def remove(self) -> None:
        """Leaves the denoiser as it was."""


class StepCache:
    """The caches of a pipeline's denoisers, by component name, through one generation after the other."""

    def __init__(self, denoisers: Mapping[str, nn.Module], caches: Mapping[str, DenoiserCache]):
        self._names = {id(module): name for name, module in denoisers.items()}
        self.caches = caches
        self._places: list[tuple[str, int]] = []  # of each step: the denoiser, and which of its own steps
        self._active: frozenset[str] = frozenset()
        self._judge = ""

    @property
    def stand_ins(self) -> dict[str, Mapping[str, nn.Module]]:
        """Of each denoiser, what is called in the place of its lists' blocks."""
        return {name: cache.stand_ins for name, cache in self.caches.items()}

    def begin(self, denoisers: Sequence[nn.Module], *, judge: str) -> None:
        """Before a generation, with the denoiser of each of its steps; `judge` is the branch they are judged by."""
        count, self._places, self._active, self._judge = Counter[str](), [], frozenset(), judge
        for name in (self._names[id(module)] for module in denoisers):
            self._places.append((name, count[name]))
            count[name] += 1
        for name, cache in self.caches.items():
            cache.begin(count[name])

    def forward(self, step: int, active: Sequence[Collection[str]], names: tuple[str, ...], *, first: bool) -> None:
        """Before each forward, with the branches of every forward of this step and those of this one. Where other
        branches run than in the step before, what was computed is forgotten: it would not be the same on every rank.
        """
        name, own = self._places[step]
        running = frozenset(branch for branches in active for branch in branches)
        if running != self._active:
            for cache in self.caches.values():
                cache.renew()
        self._active = running
        judge = self._judge if self._judge in active[0] else next(iter(active[0]))
        self.caches[name].forward(own, Call(names, judge, first))

    def used(self) -> CacheUse:
        """What was reused in this generation, on this rank: counted from the blocks that ran."""
        logs = [self.caches[name].log[own] for name, own in self._places]
        lists = [self.caches[name].lists for name, _ in self._places]
        whole = [log.forwards * sum(each.values()) for log, each in zip(logs, lists, strict=True)]
        kinds = ["compute" if log.ran.total() == blocks else "cached" for log, blocks in zip(logs, whole, strict=True)]
        return CacheUse(
            kinds=kinds,
            forwards=sum(log.forwards for log in logs),
            blocks_run=_sum(log.ran for log in logs),
            blocks=_sum(
                Counter({key: log.forwards * count for key, count in each.items()})
                for log, each in zip(logs, lists, strict=True)
            ),
            denoisers={name: self._use(name) for name in self.caches if any(at == name for at, _ in self._places)},
        )

    def _use(self, name: str) -> DenoiserUse:
        cache = self.caches[name]
        return DenoiserUse(
            steps=[step for step, (at, _) in enumerate(self._places) if at == name],
            mask=cache.mask,
            decisions={
                key: "".join("1" if log.ran[key] == log.forwards * blocks else "0" for log in cache.log)
                for key, blocks in cache.lists.items()
            },
            changes={key: [log.changes.get(key) for log in cache.log] for key in cache.lists},
            outputs=[log.output for log in cache.log],
        )

    def remove(self) -> None:
        """Leaves every denoiser as it was."""
        for cache in self.caches.values():
            cache.remove()


def _sum(counters: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counters, Counter[str]())


def resolve(
    spec: Mapping[str, Any], plan: CachePlan | None, mesh: Mesh, published: TeaCacheFit | None
) -> Applied | Refused | None:
    """`spec` is the recipe's `cache` section, `published` TeaCache's fit; None where it asks for no cache."""
    backend = spec["backend"]
    if backend == "none":
        return None
    if plan is None:
        return Refused(f"cache.backend={backend}: this family does not say what its blocks make; use none")
    if backend == "dbcache" and not is_installed():
        return Refused(f"cache.backend={backend} needs cache-dit, which is not installed here: {INSTALL}")
    if mesh.in_step:
        return Refused(f"cache.backend={backend}: replicas share weights and would skip unlike blocks; use hsdp=none")
    if backend == "dbcache":
        return Applied(_shown(spec))
    if why := unpublished(spec, published):
        return Refused(why)
    return Applied({"backend": backend, **tea_settings(spec, published)})


def _shown(spec: Mapping[str, Any]) -> dict[str, object]:
    """The settings of DBCache that have an effect."""
    seer, scm = spec["taylorseer"], spec["scm"]
    own = {key: value for key, value in spec.items() if not isinstance(value, dict) and key != "min_hit_rate"}
    if seer["enabled"]:
        own["taylorseer"] = seer["order"]
    if is_masked(scm):
        own["scm"] = {key: value for key, value in scm.items() if value not in ("none", [])}
    secondary = {key: value for key, value in spec["secondary"].items() if value is not None}
    return {**own, **({"secondary": secondary} if secondary else {})}


def apply(
    denoisers: Mapping[str, nn.Module],
    spec: Mapping[str, Any],
    plan: CachePlan,
    mesh: Mesh,
    sequence: SequencePlan | None,
    published: TeaCacheFit | None,
) -> StepCache:
    """Gives each denoiser, by component name, a cache. Before its tokens are dealt to ranks: the blocks do that.

    Raises PlanError for a denoiser whose lists have too few blocks to leave one out.
    """
    if spec["backend"] == "teacache":
        from difftool.acceleration.teacache import InputCache

        tea = tea_settings(spec, published)
        made = {name: InputCache(each, plan, **tea, line=mesh.replica) for name, each in denoisers.items()}
        return StepCache(denoisers, made)
    make, own_part = load_dbcache(), _cut(mesh, sequence)
    caches = {
        name: make(module, plan.blocks, settings_of(spec, name), line=mesh.replica, own_part=own_part, name=name)
        for name, module in denoisers.items()
    }
    return StepCache(denoisers, caches)


def settings_of(spec: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The settings of one denoiser: those of the second differ by `cache.secondary`."""
    own = {key: value for key, value in spec["secondary"].items() if value is not None} if name == SECOND else {}
    return {**spec, **own}


def _cut(mesh: Mesh, sequence: SequencePlan | None) -> Callable[[Tensor], Tensor]:
    """The part of the image's tokens that the first block of a forward takes on this rank."""
    if mesh.sequence.degree == 1:
        return lambda states: states
    assert sequence is not None
    (split,) = [split for name, split in sequence.tokens.items() if name in ("hidden_states", "x")]
    return lambda states: mesh.sequence.cut(states, split.dim)

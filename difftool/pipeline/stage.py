"""The contract of a stage: what it reads, what it writes, and one timed call."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar

from difftool.acceleration.attention.video import Video
from difftool.acceleration.cache import StepCache
from difftool.acceleration.residence import NOWHERE, Residence
from difftool.components.loaded import Components
from difftool.parallel.mesh import Mesh
from difftool.parallel.world import World
from difftool.pipeline.batch import Batch
from difftool.pipeline.encodings import Encodings
from difftool.profiling.timers import Timer

if TYPE_CHECKING:
    from difftool.pipeline.config import PipelineConfig


@dataclass(frozen=True)
class Context:
    """What a stage may use besides the batch. `notify(event, **values)` reports progress and never synchronises.

    `encodings` are those of earlier items; None where every sample must pay for its own. `mesh` is where this rank
    stands among those that make the item. `cache` are the caches of the denoisers, where they have any. `joined`:
    branches of unlike text may share a forward. `videos` are told the step, for kernels that leave out parts of one.
    `residence` brings weights that are away while no stage needs them.
    """

    components: Components
    timer: Timer
    notify: Callable[..., None]
    encodings: Encodings | None = None
    mesh: Mesh = field(default_factory=lambda: Mesh({}, World()))
    cache: StepCache | None = None
    joined: bool = True
    videos: Mapping[str, Video] = field(default_factory=dict)
    residence: Residence = NOWHERE

    @property
    def device(self):
        """Where the stages compute."""
        return self.timer.platform.device


class PipelineStage(ABC):
    """One named part of a pipeline.

    `reads` must be set before it and `writes` are set after it, by it alone; `components` are the modules it needs,
    on the device while it runs. A stage that may come to need none `fetches` them itself, by `ctx.residence.come`.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[str]]
    writes: ClassVar[frozenset[str]]
    components: tuple[str, ...] = ()
    fetches: ClassVar[bool] = False

    def __init__(self, config: "PipelineConfig"):
        self.config = config

    def applies(self, batch: Batch, ctx: Context) -> bool:
        """Whether this request has work for it; a stage that has none does not run and is in no table."""
        return True

    @abstractmethod
    def forward(self, batch: Batch, ctx: Context) -> Batch:
        """Does the stage's work and returns the batch with `writes` set."""

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """Verifies the inputs, runs `forward` on the clock, verifies the outputs."""
        missing = sorted(name for name in self.reads if getattr(batch, name) is None)
        assert not missing, f"{self.name} runs before {missing} are set"
        ctx.notify("stage_started", stage=self.name)
        with ctx.timer.stage(self.name), ctx.residence.visit(() if self.fetches else self.components):
            after = self.forward(batch, ctx)
        ctx.notify("stage_finished", stage=self.name, ms=ctx.timer.timings.stages[self.name])
        changed = {f.name for f in fields(Batch) if getattr(after, f.name) is not getattr(batch, f.name)}
        assert changed <= self.writes, f"{self.name} wrote {sorted(changed - self.writes)} undeclared"
        return after

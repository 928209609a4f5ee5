"""The denoising loop: the one loop of every family. Nothing in it waits for the device, but a cache that judges it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from difftool.pipeline.batch import Batch, Branch
from difftool.pipeline.config import PipelineConfig
from difftool.pipeline.stage import Context, PipelineStage


@dataclass(frozen=True)
class Forward:
    """One call of the denoiser in the steps `active`: a branch of its own, or several of `names` in one batch."""

    names: tuple[str, ...]
    branch: Branch
    active: Collection[int]


def forwards(config: PipelineConfig, branches: tuple[Branch, ...], *, joined: bool = True) -> tuple[Forward, ...]:
    """How the branches reach the denoiser. The joint ones are put together here, once for all steps, where `joined`
    allows it.
    """
    named = {branch.name: branch for branch in branches}
    together: tuple[Forward, ...] = ()
    if joined and config.joint and set(config.joint) <= named.keys():
        joined = Branch.joined([named[name] for name in config.joint])
        together = (Forward(config.joint, joined, joined.active),)
    shared = {name: set(call.active) for call in together for name in call.names}
    alone = (Forward((b.name,), b, set(b.active) - shared.get(b.name, set())) for b in branches)
    return tuple(call for call in (*together, *alone) if call.active)


class DenoisingStage(PipelineStage):
    """Writes `denoised`, the latents after the last step."""

    name = "denoising"
    reads = frozenset(("latents", "timesteps", "scheduler", "branches"))
    writes = frozenset(("denoised",))

    @property
    def components(self) -> tuple[str, ...]:
        return self.config.roles["denoising"]

    @torch.no_grad()
    def forward(self, batch: Batch, ctx: Context) -> Batch:
        config, latents, steps = self.config, batch.latents, len(batch.timesteps)
        # each branch has a rank of its own; texts of unlike length in one batch need a mask, which no ring passes on
        joined = ctx.joined and ctx.mesh["cfg"].degree == ctx.mesh["ring"].degree == 1
        times, calls = config.model_timesteps(batch, latents), forwards(config, batch.branches, joined=joined)
        if ctx.cache is not None:
            denoisers = [config.select_transformer(ctx.components, batch, i) for i in range(steps)]
            ctx.cache.begin(denoisers, judge=batch.branches[0].name)
        with config.loop_constants(ctx.components, batch):
            ctx.timer.step()
            for i in range(steps):
                for video in ctx.videos.values():
                    video.step, video.steps = i, steps
                with ctx.timer.range(f"step: {i}"):
                    latents = self.one_step(batch, ctx, calls, latents, times[i], i)
                ctx.timer.step()
                ctx.notify("step", step=i, steps=steps)
        return replace(batch, denoised=config.after_loop(batch, latents))

    def one_step(
        self, batch: Batch, ctx: Context, calls: tuple[Forward, ...], latents: Tensor, time: Tensor, i: int
    ) -> Tensor:
        """[B, S, C] latents of step i -> those of step i + 1."""
        predictions = self.predict(batch, ctx, calls, latents, time, i)
        return self.move(batch, self.config.combine(predictions, batch, i), latents, i)

    def predict(
        self, batch: Batch, ctx: Context, calls: tuple[Forward, ...], latents: Tensor, time: Tensor, i: int
    ) -> Mapping[str, Tensor]:
        """The predictions of the branches that are active at step i, by name."""
        config, line = self.config, ctx.mesh["cfg"]
        transformer = config.select_transformer(ctx.components, batch, i)
        model_input = config.model_input(batch, latents, i)
        active, found = [call for call in calls if i in call.active], dict[str, Tensor]()
        for start in range(0, len(active), line.degree):
            dealt = active[start : start + line.degree]
            # ranks beyond the last call repeat it: all that share weights run equally many forwards
            own = dealt[min(line.index, len(dealt) - 1)]
            if ctx.cache is not None:
                ctx.cache.forward(i, [call.names for call in active], own.names, first=start == 0)
            prediction = _forward(config, transformer, own, model_input, time)
            parts = [prediction]
            if len(dealt) > 1:
                parts = line.gather(prediction, 0, [len(prediction)] * line.degree)
            for call, part in zip(dealt, parts, strict=False):
                found |= zip(call.names, part.chunk(len(call.names)), strict=True)
        return found

    def move(self, batch: Batch, prediction: Tensor, latents: Tensor, i: int) -> Tensor:
        """Where the guided prediction of step i leads."""
        return self.config.step(batch, prediction, i, latents)


def _forward(
    config: PipelineConfig, transformer: nn.Module, call: Forward, model_input: Tensor, time: Tensor
) -> Tensor:
    """The predictions of one call's branches, one after the other in the batch."""
    count = len(call.names)
    given = (torch.cat([model_input] * count), torch.cat([time] * count)) if count > 1 else (model_input, time)
    return config.predict(transformer, *given, call.branch)

"""The denoising loop: the one loop of every family. Nothing in it waits for the device."""

from dataclasses import replace

import torch
from torch import Tensor

from difftool.pipeline.batch import Batch
from difftool.pipeline.stage import Context, PipelineStage


class DenoisingStage(PipelineStage):
    """Writes `denoised`, the latents after the last step. Each active branch is one forward of the denoiser."""

    name = "denoising"
    reads = frozenset(("latents", "timesteps", "scheduler", "branches"))
    writes = frozenset(("denoised",))

    @property
    def components(self) -> tuple[str, ...]:
        return self.config.roles["denoising"]

    @torch.no_grad()
    def forward(self, batch: Batch, ctx: Context) -> Batch:
        config, latents, steps = self.config, batch.latents, len(batch.timesteps)
        times = config.model_timesteps(batch.timesteps, latents)
        with config.loop_constants(ctx.components, batch):
            ctx.timer.step()
            for i in range(steps):
                latents = self.one_step(batch, ctx, latents, times[i], i)
                ctx.timer.step()
                ctx.notify("step", step=i, steps=steps)
        return replace(batch, denoised=latents)

    def one_step(self, batch: Batch, ctx: Context, latents: Tensor, time: Tensor, i: int) -> Tensor:
        """[B, S, C] latents of step i -> those of step i + 1."""
        model_input = self.config.model_input(latents, i)
        active = [branch for branch in batch.branches if i in branch.active]
        predictions = [self.config.predict(ctx.components, model_input, time, branch) for branch in active]
        return self.config.step(batch, self.config.combine(predictions, batch), i, latents)

"""The schedule, and everything else that no step changes."""

from dataclasses import replace

import torch

from difftool.pipeline.batch import Batch
from difftool.pipeline.stage import Context, PipelineStage


class TimestepPreparationStage(PipelineStage):
    """Writes a scheduler of this request's own, its timesteps and sigmas, and the guidance branches."""

    name = "timestep_preparation"
    reads = frozenset(("num_inference_steps", "latents", "prompt_embeds"))
    writes = frozenset(("scheduler", "timesteps", "times", "sigmas", "branches"))

    @torch.no_grad()
    def forward(self, batch: Batch, ctx: Context) -> Batch:
        scheduler, timesteps = self.config.prepare_timesteps(ctx.components, batch, ctx.device)
        sigmas, times = scheduler.sigmas.tolist(), timesteps.tolist()
        scheduled = replace(batch, scheduler=scheduler, timesteps=timesteps, times=times, sigmas=sigmas)
        branches = self.config.make_branches(ctx.components, scheduled, ctx.device)
        return replace(scheduled, branches=branches)

"""The initial noise."""

from dataclasses import replace

import torch

from difftool.pipeline.batch import Batch
from difftool.pipeline.stage import Context, PipelineStage


class LatentPreparationStage(PipelineStage):
    """Writes `latents` in the denoiser's layout and `raw_latent_shape`, what they were before packing."""

    name = "latent_preparation"
    reads = frozenset(("height", "width", "seeds", "prompt_embeds"))
    writes = frozenset(("latents", "raw_latent_shape"))

    @torch.no_grad()
    def forward(self, batch: Batch, ctx: Context) -> Batch:
        latents, shape = self.config.prepare_latents(ctx.components, batch, ctx.device)
        return replace(batch, latents=latents, raw_latent_shape=shape)

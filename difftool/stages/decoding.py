"""Latents to pixels."""

from dataclasses import replace

import torch

from difftool.pipeline.batch import Batch
from difftool.pipeline.stage import Context, PipelineStage


class DecodingStage(PipelineStage):
    """Writes `pixels` in [0, 1]."""

    name = "decoding"
    reads = frozenset(("denoised", "raw_latent_shape"))
    writes = frozenset(("pixels",))

    @property
    def components(self) -> tuple[str, ...]:
        return self.config.roles["decoding"]

    @torch.no_grad()
    def forward(self, batch: Batch, ctx: Context) -> Batch:
        latents, kwargs = self.config.prepare_decode(ctx.components, batch)
        decoded = ctx.components.vae.decode(latents, return_dict=False, **kwargs)[0]
        return replace(batch, pixels=self.config.post_decode(ctx.components, decoded))

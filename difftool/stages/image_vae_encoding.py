"""Condition pictures to latents."""

from dataclasses import replace

import torch

from difftool.pipeline.batch import Batch
from difftool.pipeline.config import PictureLatents
from difftool.pipeline.stage import Context, PipelineStage


class ImageVAEEncodingStage(PipelineStage):
    """Writes `image_latents`, which `prepare_latents`, `make_branches` and `model_input` of the family read."""

    config: PictureLatents
    name = "image_vae_encoding"
    reads = frozenset(("image",))
    writes = frozenset(("image_latents",))

    @property
    def components(self) -> tuple[str, ...]:
        return self.config.roles["decoding"]

    def applies(self, batch: Batch, ctx: Context) -> bool:
        return bool(batch.image)

    @torch.no_grad()
    def forward(self, batch: Batch, ctx: Context) -> Batch:
        return replace(batch, image_latents=self.config.encode_image_latents(ctx.components, batch, ctx.device))

"""Condition pictures to embeddings."""

from dataclasses import replace

import torch

from difftool.pipeline.batch import Batch
from difftool.pipeline.config import PictureEmbeds
from difftool.pipeline.stage import Context, PipelineStage


class ImageEncodingStage(PipelineStage):
    """Writes `image_embeds`: what the image encoder makes of the condition pictures."""

    config: PictureEmbeds
    name = "image_encoding"
    reads = frozenset(("image",))
    writes = frozenset(("image_embeds",))

    @property
    def components(self) -> tuple[str, ...]:
        return self.config.roles["image_encoding"]

    def applies(self, batch: Batch, ctx: Context) -> bool:
        """Not without pictures, nor for a checkpoint of the family that has no image encoder."""
        return bool(batch.image) and all(getattr(ctx.components, name) is not None for name in self.components)

    @torch.no_grad()
    def forward(self, batch: Batch, ctx: Context) -> Batch:
        return replace(batch, image_embeds=self.config.encode_image(ctx.components, batch, ctx.device))

"""Prompts to embeddings."""

from dataclasses import replace

import torch

from difftool.pipeline.batch import Batch
from difftool.pipeline.stage import Context, PipelineStage


class TextEncodingStage(PipelineStage):
    """Writes one tensor per text encoder; the negative prompt only where a second branch will use it."""

    name = "text_encoding"
    reads = frozenset(("prompt",))
    writes = frozenset(("prompt_embeds", "negative_prompt_embeds"))

    @property
    def components(self) -> tuple[str, ...]:
        return self.config.roles["text_encoding"]

    @torch.no_grad()
    def forward(self, batch: Batch, ctx: Context) -> Batch:
        positive = self.config.encode_prompt(ctx.components, batch, ctx.device, negative=False)
        if not self.config.runs_negative_branch(batch):
            return replace(batch, prompt_embeds=positive)
        negative = self.config.encode_prompt(ctx.components, batch, ctx.device, negative=True)
        return replace(batch, prompt_embeds=positive, negative_prompt_embeds=negative)

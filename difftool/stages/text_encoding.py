"""Prompts to embeddings."""

import json
from dataclasses import replace

import torch

from difftool.pipeline.batch import Batch, Embeds
from difftool.pipeline.config import PipelineConfig
from difftool.pipeline.encodings import Key
from difftool.pipeline.stage import Context, PipelineStage

PROMPT, NEGATIVE = "prompt", "negative_prompt"


def texts_to_encode(config: PipelineConfig, batch: Batch) -> tuple[str, ...]:
    """The negative prompt only where a second branch will use it."""
    return (PROMPT, NEGATIVE) if config.runs_negative_branch(batch) else (PROMPT,)


def encoding_key(config: PipelineConfig, batch: Batch, text: str) -> Key:
    """Equal for two requests exactly where all that the family's encoding of this text reads is equal."""
    inputs = {name: getattr(batch, name) for name in (text, *config.encoding_inputs)}
    return text, json.dumps(inputs, sort_keys=True, default=lambda picture: picture.sha256)


class TextEncodingStage(PipelineStage):
    """Writes one entry per text encoder for each text; one that an earlier item encoded is used again, if kept."""

    name = "text_encoding"
    reads = frozenset(("prompt",))
    writes = frozenset(("prompt_embeds", "negative_prompt_embeds"))
    fetches = True  # encoders are needed for texts alone that no earlier item had

    @property
    def components(self) -> tuple[str, ...]:
        return self.config.roles["text_encoding"]

    @torch.no_grad()
    def forward(self, batch: Batch, ctx: Context) -> Batch:
        texts = texts_to_encode(self.config, batch)
        return replace(batch, **{f"{text}_embeds": self._encode(batch, ctx, text) for text in texts})

    def _encode(self, batch: Batch, ctx: Context, text: str) -> Embeds:
        def encode() -> Embeds:
            ctx.components.bring()
            ctx.residence.come(self.components)
            return self.config.encode_prompt(ctx.components, batch, ctx.device, negative=text == NEGATIVE)

        if ctx.encodings is None:
            return encode()
        return ctx.encodings.get(encoding_key(self.config, batch, text), encode)

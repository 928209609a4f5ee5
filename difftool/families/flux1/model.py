"""FLUX.1: how its prompts, latents, schedule and predictions are made.

Legend: B samples, S image tokens (2 x 2 latent patches), L text tokens, D width, C latent channels. Source of every
formula: `FluxPipeline.__call__` of diffusers, whose arithmetic this follows bit for bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn

from difftool.components.loaded import Components
from difftool.components.schedulers import fresh_scheduler
from difftool.families.flux1.facts import FACTS
from difftool.pipeline.batch import Batch, Branch
from difftool.pipeline.config import PipelineConfig
from difftool.pipeline.stage import PipelineStage
from difftool.stages.standard import standard_t2i_stages


class HeldRope(nn.Module):
    """Stands in for `pos_embed` during a loop: returns the rotary table [L + S, D] made once for these ids."""

    def __init__(self, table: tuple[Tensor, Tensor]):
        super().__init__()
        self.table = table

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        assert len(ids) == len(self.table[0]), (ids.shape, self.table[0].shape)
        return self.table


class Flux1Config(PipelineConfig):
    """FLUX.1-dev, FLUX.1-schnell and checkpoints of their layout."""

    facts = FACTS
    holder = "FluxPipeline"
    roles = {
        "text_encoding": ("text_encoder", "text_encoder_2"),
        "denoising": ("transformer",),
        "decoding": ("vae",),
    }

    def stages(self) -> list[PipelineStage]:
        return standard_t2i_stages(self)

    def encode_prompt(
        self, components: Components, batch: Batch, device: torch.device, *, negative: bool
    ) -> list[Tensor]:
        """[B, L, D] of T5 and [B, D] of CLIP, pooled."""
        prompts, second = (batch.negative_prompt, "negative_prompt_2") if negative else (batch.prompt, "prompt_2")
        text = batch.extra.get(second)
        embeds, pooled, _ = components.holder.encode_prompt(
            prompt=prompts,
            prompt_2=None if text is None else [text] * len(prompts),
            device=device,
            max_sequence_length=batch.max_sequence_length,
        )
        return [embeds, pooled]

    def prepare_latents(
        self, components: Components, batch: Batch, device: torch.device
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Packed noise [B, S, 4C]; its shape before packing is [B, C, H/8, W/8]."""
        channels, holder = components.transformer.config.in_channels // 4, components.holder
        generators = batch.generators()
        latents, _ = holder.prepare_latents(
            len(generators), channels, batch.height, batch.width, components.transformer.dtype, device, generators
        )
        sides = (2 * (side // (2 * holder.vae_scale_factor)) for side in (batch.height, batch.width))
        return latents, (len(generators), channels, *sides)

    def prepare_timesteps(self, components: Components, batch: Batch, device: torch.device) -> tuple[Any, Tensor]:
        """Sigmas from 1 to 1/N, shifted by the number of image tokens where the scheduler's config asks for it."""
        scheduler = fresh_scheduler(components.scheduler, batch.schedule)
        steps, config = batch.num_inference_steps, scheduler.config
        sigmas = batch.schedule.get("sigmas") or np.linspace(1.0, 1 / steps, steps)
        mu = calculate_shift(
            batch.latents.shape[1],
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        scheduler.set_timesteps(sigmas=None if config.get("use_flow_sigmas") else sigmas, device=device, mu=mu)
        scheduler.set_begin_index(0)  # else the first step searches the timesteps on the device
        return scheduler, scheduler.timesteps

    def make_branches(self, components: Components, batch: Batch, device: torch.device) -> tuple[Branch, ...]:
        transformer, (_, _, height, width) = components.transformer, batch.raw_latent_shape
        dtype = transformer.dtype
        length = batch.prompt_embeds[0].shape[1]
        shared = {
            "txt_ids": torch.zeros(length, 3).to(device=device, dtype=dtype),
            "img_ids": components.holder._prepare_latent_image_ids(1, height // 2, width // 2, device, dtype),
            "guidance": self._guidance(transformer, batch, device),
        }
        embeds = {"positive": batch.prompt_embeds, "negative": batch.negative_prompt_embeds}
        return tuple(
            Branch(
                name,
                {"encoder_hidden_states": sequence.to(dtype), "pooled_projections": pooled.to(dtype), **shared},
                range(len(batch.timesteps)),
            )
            for name, (sequence, pooled) in ((name, pair) for name, pair in embeds.items() if pair is not None)
        )

    def _guidance(self, transformer: nn.Module, batch: Batch, device: torch.device) -> Tensor | None:
        if not transformer.config.guidance_embeds:
            return None
        return torch.full([1], batch.guidance_scale, device=device, dtype=torch.float32).expand(len(batch.prompt))

    @contextmanager
    def loop_constants(self, components: Components, batch: Batch) -> Iterator[None]:
        """The rotary table is the same at every step and in both branches, which have equal text lengths."""
        transformer, kwargs = components.transformer, batch.branches[0].kwargs
        module = transformer.pos_embed
        transformer.pos_embed = HeldRope(module(torch.cat((kwargs["txt_ids"], kwargs["img_ids"]))))
        try:
            yield
        finally:
            transformer.pos_embed = module

    def model_timesteps(self, timesteps: Tensor, latents: Tensor) -> Sequence[Tensor]:
        """Flow time in [0, 1]; the transformer multiplies by 1000 again."""
        return [time / 1000 for time in super().model_timesteps(timesteps, latents)]

    def predict(self, components: Components, model_input: Tensor, time: Tensor, branch: Branch) -> Tensor:
        """[B, S, 4C] velocity."""
        return components.transformer(hidden_states=model_input, timestep=time, return_dict=False, **branch.kwargs)[0]

    def combine(self, predictions: Sequence[Tensor], batch: Batch) -> Tensor:
        """True classifier-free guidance: negative + scale * (positive - negative)."""
        if len(predictions) == 1:
            return predictions[0]
        positive, negative = predictions
        return negative + batch.true_cfg_scale * (positive - negative)

    def prepare_decode(self, components: Components, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """Unpacked [B, C, H/8, W/8], with the VAE's scale and shift undone."""
        holder, config = components.holder, components.vae.config
        latents = holder._unpack_latents(batch.denoised, batch.height, batch.width, holder.vae_scale_factor)
        latents = (latents / config.scaling_factor) + config.shift_factor
        return latents.to(components.vae.dtype), {}

    def post_decode(self, components: Components, decoded: Tensor) -> Tensor:
        return components.holder.image_processor.postprocess(decoded, output_type="pt")

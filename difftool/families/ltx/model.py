"""LTX-Video: how its prompts, latents, schedule and predictions are made, from text or from text and a first frame.

Legend: B samples, S latent tokens, L text tokens, D width, C latent channels, F x H x W latent frames and sides.
Source of every formula: `LTXPipeline.__call__` and, with a picture, `LTXImageToVideoPipeline.__call__` of diffusers,
whose arithmetic this follows bit for bit.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.ltx.pipeline_ltx import rescale_noise_cfg
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from difftool.components.loaded import Components
from difftool.components.schedulers import fresh_scheduler, shift_by_length
from difftool.families.ltx.caching import CACHE
from difftool.families.ltx.facts import FACTS, PIPELINE
from difftool.families.ltx.sharding import SEQUENCE, TENSOR
from difftool.pipeline.batch import Batch, Branch, Embeds
from difftool.pipeline.config import PictureLatents
from difftool.pipeline.held import Remembered, replaced
from difftool.pipeline.stage import PipelineStage
from difftool.stages.standard import standard_ti2i_stages


class LTXConfig(PictureLatents):
    """LTX-Video and checkpoints of its layout; a picture, if given, is the first frame."""

    facts = FACTS
    pipeline_class = holder = PIPELINE
    roles = {"text_encoding": ("text_encoder",), "denoising": ("transformer",), "decoding": ("vae",)}
    sequence, tensor, cache = SEQUENCE, TENSOR, CACHE
    joint = ("negative", "positive")

    def stages(self) -> list[PipelineStage]:
        return standard_ti2i_stages(self)

    def encode_prompt(self, components: Components, batch: Batch, device: torch.device, *, negative: bool) -> Embeds:
        """[B, L, D] of T5, and which of its tokens are text [B, L]."""
        embeds, mask, _, _ = components.holder.encode_prompt(
            prompt=batch.negative_prompt if negative else batch.prompt,
            do_classifier_free_guidance=False,
            max_sequence_length=batch.max_sequence_length,
            device=device,
        )
        return [embeds, mask]

    def encode_image_latents(self, components: Components, batch: Batch, device: torch.device) -> Tensor:
        """[B, C, 1, H, W] drawn from the posterior of the first frame, by each sample's own generator."""
        vae, processor = components.vae, components.holder.video_processor
        pixels = processor.preprocess(batch.image[0].image, height=batch.height, width=batch.width)
        posterior = vae.encode(pixels.to(device=device, dtype=vae.dtype).unsqueeze(2)).latent_dist
        return torch.cat([posterior.sample(generator) for generator in batch.generators()])

    def prepare_latents(
        self, components: Components, batch: Batch, device: torch.device
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Packed [B, S, C] in fp32, whatever the denoiser computes in: noise, behind a first frame if there is one."""
        shape = _latent_shape(components, batch)
        latents = next(_noises(components, batch, shape, device))
        if batch.image_latents is not None:
            vae, first = components.vae, batch.image_latents.to(torch.float32)
            first = components.holder._normalize_latents(first, vae.latents_mean, vae.latents_std)
            kept = _first_frame(latents)
            latents = first.repeat(1, 1, shape[2], 1, 1) * kept + latents * (1 - kept)
        return _pack(components, latents), shape

    def prepare_timesteps(self, components: Components, batch: Batch, device: torch.device) -> tuple[Any, Tensor]:
        """Sigmas from 1 to 1/N, shifted by the number of video tokens where the scheduler's config asks for it."""
        scheduler = fresh_scheduler(components.scheduler, batch.schedule)
        steps = batch.num_inference_steps
        mu = shift_by_length(scheduler.config, math.prod(batch.raw_latent_shape[2:]))
        sigmas = batch.schedule.get("sigmas") or np.linspace(1.0, 1 / steps, steps)
        scheduler.set_timesteps(sigmas=sigmas, device=device, mu=mu)
        scheduler.set_begin_index(0)  # else the first step searches the timesteps on the device
        return scheduler, scheduler.timesteps

    def make_branches(self, components: Components, batch: Batch, device: torch.device) -> tuple[Branch, ...]:
        holder, dtype = components.holder, components.transformer.dtype
        frames, height, width = batch.raw_latent_shape[2:]
        side = holder.vae_spatial_compression_ratio
        shared = {
            "num_frames": frames,
            "height": height,
            "width": width,
            "rope_interpolation_scale": (holder.vae_temporal_compression_ratio / batch.fps, side, side),
        }
        embeds = {"positive": batch.prompt_embeds, "negative": batch.negative_prompt_embeds}
        return tuple(
            Branch(name, {**_text(pair, dtype), **shared}, range(len(batch.timesteps)))
            for name, pair in embeds.items()
            if pair is not None
        )

    def loop_constants(self, components: Components, batch: Batch) -> AbstractContextManager[None]:
        """The rotary table, a row for each sample of a forward, and the texts' projection, which reads only them."""
        transformer = components.transformer
        return replaced(
            transformer,
            rope=Remembered(transformer.rope, key=lambda hidden_states, *grid: len(hidden_states)),
            caption_projection=Remembered(transformer.caption_projection),
        )

    def model_timesteps(self, batch: Batch, latents: Tensor) -> Sequence[Tensor]:
        """From 1000 to 0; with a first frame, [B, S] with 0 for each of its tokens."""
        times = super().model_timesteps(batch, latents)
        if batch.image_latents is None:
            return times
        noisy = torch.ones(latents.shape[:2], device=latents.device, dtype=latents.dtype)
        noisy[:, : _frame_tokens(batch)] = 0
        return [time.unsqueeze(-1) * noisy for time in times]

    def predict(self, transformer: nn.Module, model_input: Tensor, time: Tensor, branch: Branch) -> Tensor:
        """[B, S, C] velocity in fp32."""
        latents = model_input.to(transformer.dtype)
        return transformer(hidden_states=latents, timestep=time, return_dict=False, **branch.kwargs)[0].float()

    def combine(self, predictions: Mapping[str, Tensor], batch: Batch, i: int) -> Tensor:
        """Guided, it is brought towards the positive's spread by `guidance_rescale`."""
        guided, rescale = super().combine(predictions, batch, i), batch.extra.get("guidance_rescale", 0.0)
        if "negative" not in predictions or rescale <= 0:
            return guided
        return rescale_noise_cfg(guided, predictions["positive"], guidance_rescale=rescale)

    def step(self, batch: Batch, prediction: Tensor, i: int, latents: Tensor) -> Tensor:
        """The scheduler's move; a first frame stays where it is."""
        moved = super().step(batch, prediction, i, latents)
        if batch.image_latents is not None:
            first = _frame_tokens(batch)
            moved[:, :first] = latents[:, :first]
        return moved

    def video_grid(self, transformer: nn.Module, given: Mapping[str, Any]) -> tuple[int, int, int]:
        return given["num_frames"], given["height"], given["width"]

    def prepare_decode(self, components: Components, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """[B, C, F, H, W]; where the VAE takes a timestep, that, and noise of `decode_noise_scale` in the latents."""
        holder, vae, dtype = components.holder, components.vae, components.transformer.dtype
        sizes = (*batch.raw_latent_shape[2:], holder.transformer_spatial_patch_size)
        latents = holder._unpack_latents(batch.denoised, *sizes, holder.transformer_temporal_patch_size)
        scaling = vae.config.scaling_factor
        latents = holder._denormalize_latents(latents, vae.latents_mean, vae.latents_std, scaling).to(dtype)
        if not vae.config.timestep_conditioning:
            return latents.to(vae.dtype), {}
        time = batch.extra.get("decode_timestep", 0.0)
        times, scales = (
            torch.full([len(latents)], value, device=latents.device, dtype=dtype)
            for value in (time, batch.extra.get("decode_noise_scale", time))
        )
        scales = scales[:, None, None, None, None]
        _, noise = _noises(components, batch, batch.raw_latent_shape, latents.device)
        latents = (1 - scales) * latents + scales * noise
        return latents.to(vae.dtype), {"temb": times}

    def post_decode(self, components: Components, decoded: Tensor) -> Tensor:
        return components.holder.video_processor.postprocess_video(decoded, output_type="pt").transpose(1, 2)


def _latent_shape(components: Components, batch: Batch) -> tuple[int, ...]:
    holder = components.holder
    frames = (batch.num_frames - 1) // holder.vae_temporal_compression_ratio + 1
    sides = (side // holder.vae_spatial_compression_ratio for side in (batch.height, batch.width))
    return (len(batch.seeds), components.transformer.config.in_channels, frames, *sides)


def _noises(components: Components, batch: Batch, shape: tuple[int, ...], device: torch.device) -> Iterator[Tensor]:
    """A sample's noises in the order its generator gives them: before the first step in fp32, before the decoding in
    the denoiser's dtype. A first frame took its own before both.
    """
    generators = batch.generators()
    if batch.image_latents is not None:
        randn_tensor(batch.image_latents.shape, generator=generators, dtype=batch.image_latents.dtype)
    for dtype in (torch.float32, components.transformer.dtype):
        yield randn_tensor(shape, generator=generators, device=device, dtype=dtype)


def _first_frame(latents: Tensor) -> Tensor:
    """[B, 1, F, H, W]: 1 in the first frame, 0 in the others."""
    mask = torch.zeros_like(latents[:, :1])
    mask[:, :, 0] = 1.0
    return mask


def _frame_tokens(batch: Batch) -> int:
    """Tokens of one frame; a first frame needs a model with patches of 1, in the reference too."""
    tokens: int = batch.raw_latent_shape[3] * batch.raw_latent_shape[4]
    return tokens


def _pack(components: Components, latents: Tensor) -> Tensor:
    holder = components.holder
    packed: Tensor = holder._pack_latents(
        latents, holder.transformer_spatial_patch_size, holder.transformer_temporal_patch_size
    )
    return packed


def _text(embeds: Embeds, dtype: torch.dtype) -> dict[str, Tensor]:
    """The text, and its mask as what the transformer would make of it at every step: a bias of the attention scores."""
    sequence, mask = embeds
    bias = (1 - mask.to(dtype)) * -10000.0
    return {"encoder_hidden_states": sequence.to(dtype), "encoder_attention_mask": bias.unsqueeze(1)}

"""FLUX.1: how its prompts, latents, schedule and predictions are made.

Legend: B samples, S image tokens (2 x 2 latent patches), P tokens of a condition picture, L text tokens, D width,
C latent channels. Source of every formula: `FluxPipeline.__call__` and `FluxKontextPipeline.__call__` of diffusers,
whose arithmetic this follows bit for bit.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from difftool.components.loaded import Components
from difftool.components.schedulers import fresh_scheduler, shift_by_length
from difftool.families.flux1.caching import CACHE
from difftool.families.flux1.facts import FACTS, kontext_size, whole_tokens
from difftool.families.flux1.layer_names import LAYER_NAMES
from difftool.families.flux1.sharding import SEQUENCE, TENSOR
from difftool.pipeline.batch import Batch, Branch, Embeds
from difftool.pipeline.config import PictureLatents, PipelineConfig
from difftool.pipeline.held import Remembered, replaced
from difftool.pipeline.stage import PipelineStage
from difftool.stages.standard import standard_t2i_stages, standard_ti2i_stages


class Flux1Config(PipelineConfig):
    """FLUX.1-dev, FLUX.1-schnell and checkpoints of their layout."""

    facts = FACTS
    pipeline_class = holder = "FluxPipeline"
    roles = {
        "text_encoding": ("text_encoder", "text_encoder_2"),
        "denoising": ("transformer",),
        "decoding": ("vae",),
    }
    layer_names = LAYER_NAMES
    sequence, tensor, cache = SEQUENCE, TENSOR, CACHE

    def stages(self) -> list[PipelineStage]:
        return standard_t2i_stages(self)

    def encode_prompt(self, components: Components, batch: Batch, device: torch.device, *, negative: bool) -> Embeds:
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
        holder, generators = components.holder, batch.generators()
        height, width = (2 * (side // (2 * holder.vae_scale_factor)) for side in (batch.height, batch.width))
        shape = (len(generators), components.transformer.config.in_channels // 4, height, width)
        noise = randn_tensor(shape, generator=generators, device=device, dtype=components.transformer.dtype)
        return holder._pack_latents(noise, *shape), shape

    def prepare_timesteps(self, components: Components, batch: Batch, device: torch.device) -> tuple[Any, Tensor]:
        """Sigmas from 1 to 1/N, shifted by the number of image tokens where the scheduler's config asks for it."""
        scheduler = fresh_scheduler(components.scheduler, batch.schedule)
        steps, config = batch.num_inference_steps, scheduler.config
        sigmas = batch.schedule.get("sigmas") or np.linspace(1.0, 1 / steps, steps)
        mu = shift_by_length(config, batch.latents.shape[1])
        scheduler.set_timesteps(sigmas=None if config.get("use_flow_sigmas") else sigmas, device=device, mu=mu)
        scheduler.set_begin_index(0)  # else the first step searches the timesteps on the device
        return scheduler, scheduler.timesteps

    def make_branches(self, components: Components, batch: Batch, device: torch.device) -> tuple[Branch, ...]:
        transformer = components.transformer
        dtype = transformer.dtype
        length = batch.prompt_embeds[0].shape[1]
        shared = {
            "txt_ids": torch.zeros(length, 3).to(device=device, dtype=dtype),
            "img_ids": self.image_ids(components, batch, device),
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

    def image_ids(self, components: Components, batch: Batch, device: torch.device) -> Tensor:
        """[S, 3]: 0, row and column of every image token."""
        _, _, height, width = batch.raw_latent_shape
        dtype = components.transformer.dtype
        return components.holder._prepare_latent_image_ids(1, height // 2, width // 2, device, dtype)

    def _guidance(self, transformer: nn.Module, batch: Batch, device: torch.device) -> Tensor | None:
        if not transformer.config.guidance_embeds:
            return None
        return torch.full([1], batch.guidance_scale, device=device, dtype=torch.float32).expand(len(batch.prompt))

    def loop_constants(self, components: Components, batch: Batch) -> AbstractContextManager[None]:
        """The rotary table is the same at every step and in both branches, which have equal text lengths."""
        transformer, kwargs = components.transformer, batch.branches[0].kwargs
        table = Remembered(transformer.pos_embed, key=len)
        table(torch.cat((kwargs["txt_ids"], kwargs["img_ids"])))
        return replaced(transformer, pos_embed=table)

    def model_timesteps(self, batch: Batch, latents: Tensor) -> Sequence[Tensor]:
        """Flow time in [0, 1]; the transformer multiplies by 1000 again."""
        return [time / 1000 for time in super().model_timesteps(batch, latents)]

    def predict(self, transformer: nn.Module, model_input: Tensor, time: Tensor, branch: Branch) -> Tensor:
        """[B, S, 4C] velocity."""
        return transformer(hidden_states=model_input, timestep=time, return_dict=False, **branch.kwargs)[0]

    def prepare_decode(self, components: Components, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """Unpacked [B, C, H/8, W/8], with the VAE's scale and shift undone."""
        holder, config = components.holder, components.vae.config
        latents = holder._unpack_latents(batch.denoised, batch.height, batch.width, holder.vae_scale_factor)
        latents = (latents / config.scaling_factor) + config.shift_factor
        return latents.to(components.vae.dtype), {}

    def post_decode(self, components: Components, decoded: Tensor) -> Tensor:
        return components.holder.image_processor.postprocess(decoded, output_type="pt")


class PictureTokens(NamedTuple):
    """A condition picture as the transformer sees it: packed latents [B, P, 4C] and position ids [P, 3]."""

    latents: Tensor
    ids: Tensor


class KontextConfig(Flux1Config, PictureLatents):
    """FLUX.1-Kontext-dev: FLUX.1 that may read a picture, whose tokens follow those of the noise."""

    pipeline_class = holder = "FluxKontextPipeline"

    def stages(self) -> list[PipelineStage]:
        return standard_ti2i_stages(self)

    def encode_image_latents(self, components: Components, batch: Batch, device: torch.device) -> PictureTokens:
        """One picture for all samples, brought to a size that the model was trained on, or as it is."""
        holder, vae, dtype = components.holder, components.vae, components.transformer.dtype
        picture = batch.image[0].image
        resize = batch.extra.get("_auto_resize", True)
        width, height = kontext_size(*picture.size) if resize else whole_tokens(*picture.size)
        pixels = holder.image_processor.resize(picture, height, width)
        pixels = holder.image_processor.preprocess(pixels, height, width).to(device=device, dtype=vae.dtype)
        latents = holder._encode_vae_image(pixels, generator=None)  # the distribution's mode: nothing is drawn
        samples, (_, channels, height, width) = len(batch.prompt), latents.shape
        packed = holder._pack_latents(torch.cat([latents] * samples), samples, channels, height, width)
        ids = holder._prepare_latent_image_ids(samples, height // 2, width // 2, device, dtype)
        ids[..., 0] = 1
        return PictureTokens(packed.to(dtype), ids)

    def image_ids(self, components: Components, batch: Batch, device: torch.device) -> Tensor:
        """[S + P, 3]: those of the noise, and those of the picture, which begin with 1."""
        ids = super().image_ids(components, batch, device)
        return ids if batch.image_latents is None else torch.cat([ids, batch.image_latents.ids])

    def model_input(self, batch: Batch, latents: Tensor, i: int) -> Tensor:
        """[B, S + P, 4C]."""
        return latents if batch.image_latents is None else torch.cat([latents, batch.image_latents.latents], dim=1)

    def combine(self, predictions: Mapping[str, Tensor], batch: Batch, i: int) -> Tensor:
        """That of FLUX.1, of the noise's tokens alone."""
        tokens = batch.latents.shape[1]
        return super().combine({name: made[:, :tokens] for name, made in predictions.items()}, batch, i)

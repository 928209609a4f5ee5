"""FLUX.2: how its prompts, pictures, latents, schedule and predictions are made.

Legend: B samples, S image tokens (2 x 2 latent patches), P tokens of all condition pictures, L text tokens, D width,
C latent channels. Source of every formula: `Flux2Pipeline.__call__` and `Flux2KleinPipeline.__call__` of diffusers,
whose arithmetic this follows bit for bit.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor, nn

from difftool.components.loaded import Components
from difftool.components.schedulers import fresh_scheduler
from difftool.families.flux2.caching import CACHE
from difftool.families.flux2.facts import FACTS, MAX_AREA, MULTIPLE
from difftool.families.flux2.layer_names import LAYER_NAMES
from difftool.families.flux2.sharding import SEQUENCE, TENSOR
from difftool.pipeline.batch import Batch, Branch, Embeds
from difftool.pipeline.config import PictureLatents
from difftool.pipeline.held import remembered
from difftool.pipeline.stage import PipelineStage
from difftool.stages.standard import standard_ti2i_stages


class PictureTokens(NamedTuple):
    """All condition pictures as the transformer sees them: packed latents [B, P, 4C] and position ids [P, 4]."""

    latents: Tensor
    ids: Tensor


class Flux2Config(PictureLatents):
    """FLUX.2-dev: guidance is a number the transformer reads, so there is one branch."""

    facts = FACTS
    pipeline_class = holder = "Flux2Pipeline"
    roles = {"text_encoding": ("text_encoder",), "denoising": ("transformer",), "decoding": ("vae",)}
    layer_names = LAYER_NAMES
    sequence, tensor, cache = SEQUENCE, TENSOR, CACHE

    def stages(self) -> list[PipelineStage]:
        return standard_ti2i_stages(self)

    def encode_prompt(self, components: Components, batch: Batch, device: torch.device, *, negative: bool) -> Embeds:
        """[B, L, D], three layers of the language model side by side."""
        embeds, _ = components.holder.encode_prompt(
            prompt=batch.negative_prompt if negative else batch.prompt,
            device=device,
            max_sequence_length=batch.max_sequence_length,
        )
        return [embeds]

    def encode_image_latents(self, components: Components, batch: Batch, device: torch.device) -> PictureTokens:
        """Every picture at its own size, or the largest that is allowed; the edges that fill no token are cut off."""
        holder, pixels = components.holder, []
        for picture in batch.image:
            image = holder.image_processor._resize_if_exceeds_area(picture.image, MAX_AREA)
            width, height = (side // MULTIPLE * MULTIPLE for side in image.size)
            pixels.append(holder.image_processor.preprocess(image, height, width, resize_mode="crop"))
        # the distribution's mode: nothing is drawn
        latents, ids = holder.prepare_image_latents(pixels, len(batch.prompt), None, device, components.vae.dtype)
        return PictureTokens(latents.to(components.transformer.dtype), ids[0])

    def prepare_latents(
        self, components: Components, batch: Batch, device: torch.device
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Packed noise [B, S, 4C]; before packing it is [B, 4C, H/16, W/16]."""
        holder, generators = components.holder, batch.generators()
        channels, dtype = components.transformer.config.in_channels, components.transformer.dtype
        latents, _ = holder.prepare_latents(
            len(generators), channels // 4, batch.height, batch.width, dtype, device, generators
        )
        sides = (side // (2 * holder.vae_scale_factor) for side in (batch.height, batch.width))
        return latents, (len(generators), channels, *sides)

    def prepare_timesteps(self, components: Components, batch: Batch, device: torch.device) -> tuple[Any, Tensor]:
        """Sigmas from 1 to 1/N, shifted by the authors' fit to the numbers of image tokens and steps."""
        scheduler = fresh_scheduler(components.scheduler, batch.schedule)
        steps = batch.num_inference_steps
        sigmas = batch.schedule.get("sigmas") or np.linspace(1.0, 1 / steps, steps)
        if scheduler.config.get("use_flow_sigmas"):
            sigmas = None
        mu = compute_empirical_mu(batch.latents.shape[1], steps)
        scheduler.set_timesteps(steps, sigmas=sigmas, device=device, mu=mu)
        scheduler.set_begin_index(0)  # else the first step searches the timesteps on the device
        return scheduler, scheduler.timesteps

    def make_branches(self, components: Components, batch: Batch, device: torch.device) -> tuple[Branch, ...]:
        holder, dtype = components.holder, components.transformer.dtype
        embeds = {"positive": batch.prompt_embeds, "negative": batch.negative_prompt_embeds}
        shared = {
            "txt_ids": holder._prepare_text_ids(batch.prompt_embeds[0][:1])[0].to(device),
            "img_ids": self._image_ids(components, batch, device),
            "guidance": self.guidance(components, batch, device),
        }
        return tuple(
            Branch(name, {"encoder_hidden_states": found[0].to(dtype), **shared}, range(len(batch.timesteps)))
            for name, found in embeds.items()
            if found is not None
        )

    def _image_ids(self, components: Components, batch: Batch, device: torch.device) -> Tensor:
        """[S + P, 4]: picture, row and column of every image token, and 0. The noise is picture 0."""
        _, _, height, width = batch.raw_latent_shape
        ids = components.holder._prepare_latent_ids(torch.empty(1, 0, height, width))[0].to(device)
        return ids if batch.image_latents is None else torch.cat([ids, batch.image_latents.ids])

    def guidance(self, components: Components, batch: Batch, device: torch.device) -> Tensor | None:
        """[B], for a transformer that reads it."""
        if not components.transformer.config.guidance_embeds:
            return None
        return torch.full([1], batch.guidance_scale, device=device, dtype=torch.float32).expand(len(batch.prompt))

    def loop_constants(self, components: Components, batch: Batch) -> AbstractContextManager[None]:
        """The rotary tables are the same at every step and in both branches, which have equal text lengths."""
        return remembered(components.transformer, "pos_embed")

    def model_timesteps(self, batch: Batch, latents: Tensor) -> Sequence[Tensor]:
        """Flow time in [0, 1]; the transformer multiplies by 1000 again."""
        return [time / 1000 for time in super().model_timesteps(batch, latents)]

    def model_input(self, batch: Batch, latents: Tensor, i: int) -> Tensor:
        """[B, S + P, 4C]."""
        return latents if batch.image_latents is None else torch.cat([latents, batch.image_latents.latents], dim=1)

    def predict(self, transformer: nn.Module, model_input: Tensor, time: Tensor, branch: Branch) -> Tensor:
        """[B, S + P, 4C] velocity, of which the noise's tokens count."""
        return transformer(hidden_states=model_input, timestep=time, return_dict=False, **branch.kwargs)[0]

    def combine(self, predictions: Mapping[str, Tensor], batch: Batch, i: int) -> Tensor:
        """That of the noise's tokens alone."""
        tokens = batch.latents.shape[1]
        return super().combine({name: made[:, :tokens] for name, made in predictions.items()}, batch, i)

    def prepare_decode(self, components: Components, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """[B, C, H/8, W/8]: unpacked, the VAE's batch norm undone, unpatched."""
        vae, latents = components.vae, batch.denoised.transpose(1, 2).reshape(batch.raw_latent_shape)
        mean = vae.bn.running_mean.view(1, -1, 1, 1).to(latents.dtype)
        std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).to(latents.dtype)
        return components.holder._unpatchify_latents(latents * std + mean).to(vae.dtype), {}

    def post_decode(self, components: Components, decoded: Tensor) -> Tensor:
        return components.holder.image_processor.postprocess(decoded, output_type="pt")


class Flux2KleinConfig(Flux2Config):
    """FLUX.2-klein and FLUX.2-klein-base, 4B and 9B: a smaller language model, and a second branch that guides."""

    pipeline_class = holder = "Flux2KleinPipeline"

    def make_branches(self, components: Components, batch: Batch, device: torch.device) -> tuple[Branch, ...]:
        """A distilled checkpoint has no second branch, whatever the guidance."""
        branches = super().make_branches(components, batch, device)
        return branches[:1] if components.holder.config.is_distilled else branches

    def guidance(self, components: Components, batch: Batch, device: torch.device) -> Tensor | None:
        """None: the second branch guides."""
        return None

"""Z-Image: how its prompts, latents, schedule and predictions are made.

Legend: B samples, L text tokens (another number for each sample), D width, C latent channels. Source of every formula:
`ZImagePipeline.__call__` of diffusers, whose arithmetic this follows bit for bit.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas
from torch import Tensor, nn

from difftool.components.loaded import Components
from difftool.components.schedulers import fresh_scheduler, shift_by_length
from difftool.families.zimage.caching import CACHE
from difftool.families.zimage.facts import FACTS
from difftool.families.zimage.layer_names import LAYER_NAMES
from difftool.families.zimage.sharding import SEQUENCE, TENSOR
from difftool.pipeline.batch import Batch, Branch, Embeds
from difftool.pipeline.config import PipelineConfig
from difftool.pipeline.stage import PipelineStage
from difftool.stages.standard import standard_t2i_stages


def flow_times(timesteps: Tensor) -> Tensor:
    """Timesteps from 1000 to 0 -> the denoiser's time from 0 (noise) to 1."""
    return (1000 - timesteps) / 1000


def limited(prediction: Tensor, reference: Tensor) -> Tensor:
    """One sample's prediction, made no longer than `reference`; decided on the device."""
    longest, length = torch.linalg.vector_norm(reference), torch.linalg.vector_norm(prediction)
    return torch.where(length > longest, prediction * (longest / length), prediction)


class ZImageConfig(PipelineConfig):
    """Z-Image, Z-Image-Turbo and checkpoints of their layout."""

    facts = FACTS
    pipeline_class = holder = "ZImagePipeline"
    roles = {"text_encoding": ("text_encoder",), "denoising": ("transformer",), "decoding": ("vae",)}
    layer_names = LAYER_NAMES
    sequence, tensor, cache = SEQUENCE, TENSOR, CACHE
    joint = ("positive", "negative")

    def stages(self) -> list[PipelineStage]:
        return standard_t2i_stages(self)

    def encode_prompt(self, components: Components, batch: Batch, device: torch.device, *, negative: bool) -> Embeds:
        """A list of B tensors [L, D]."""
        prompts = batch.negative_prompt if negative else batch.prompt
        embeds, _ = components.holder.encode_prompt(
            prompt=list(prompts),  # a copy: the chat template is written into the list
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=batch.max_sequence_length,
        )
        return [embeds]

    def prepare_latents(
        self, components: Components, batch: Batch, device: torch.device
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Noise [B, C, H/8, W/8] in fp32, whatever the denoiser computes in."""
        generators, channels = batch.generators(), components.transformer.config.in_channels
        latents = components.holder.prepare_latents(
            len(generators), channels, batch.height, batch.width, torch.float32, device, generators
        )
        return latents, tuple(latents.shape)

    def prepare_timesteps(self, components: Components, batch: Batch, device: torch.device) -> tuple[Any, Tensor]:
        """Sigmas from 1 to 1/N, shifted by the number of image tokens where the scheduler's config asks for it."""
        scheduler = fresh_scheduler(components.scheduler, batch.schedule)
        height, width = batch.latents.shape[2:]
        mu = shift_by_length(scheduler.config, (height // 2) * (width // 2))
        sigmas = batch.schedule.get("sigmas") or get_default_z_image_sigmas(batch.num_inference_steps)
        scheduler.set_timesteps(sigmas=sigmas, device=device, mu=mu)
        scheduler.set_begin_index(0)  # else the first step searches the timesteps on the device
        return scheduler, scheduler.timesteps

    def make_branches(self, components: Components, batch: Batch, device: torch.device) -> tuple[Branch, ...]:
        """The negative branch ends where time passes `cfg_truncation`."""
        dtype = components.transformer.dtype
        positive = Branch("positive", _captions(batch.prompt_embeds, dtype), range(len(batch.timesteps)))
        if batch.negative_prompt_embeds is None:
            return (positive,)
        last, times = batch.extra.get("cfg_truncation", 1.0), flow_times(batch.timesteps.float()).tolist()
        guided = range(sum(1 for _ in takewhile(lambda time: time <= last, times)))
        return positive, Branch("negative", _captions(batch.negative_prompt_embeds, dtype), guided)

    def text_tokens(self, branch: Branch) -> Sequence[int]:
        return [len(caption) for caption in branch.kwargs["cap_feats"]]

    def model_timesteps(self, batch: Batch, latents: Tensor) -> Sequence[Tensor]:
        """Flow time, 0 at pure noise; the transformer multiplies by 1000 again."""
        return [flow_times(time) for time in super().model_timesteps(batch, latents)]

    def model_input(self, batch: Batch, latents: Tensor, i: int) -> Tensor:
        """[B, C, 1, H/8, W/8]: pictures are videos of one frame."""
        return latents.unsqueeze(2)

    def predict(self, transformer: nn.Module, model_input: Tensor, time: Tensor, branch: Branch) -> Tensor:
        """[B, C, H/8, W/8] velocity in fp32; the denoiser's own points the other way."""
        samples = list(model_input.to(transformer.dtype).unbind())
        predictions = transformer(samples, time, return_dict=False, **branch.kwargs)[0]
        return -torch.stack([prediction.float() for prediction in predictions]).squeeze(2)

    def combine(self, predictions: Mapping[str, Tensor], batch: Batch, i: int) -> Tensor:
        """positive + scale * (positive - negative); `cfg_normalization` keeps each sample's length."""
        if "negative" not in predictions:
            return predictions["positive"]
        positive, negative = predictions["positive"], predictions["negative"]
        guided = positive + batch.guidance_scale * (positive - negative)
        if not batch.extra.get("cfg_normalization"):
            return guided
        return torch.stack([limited(*pair) for pair in zip(guided, positive, strict=True)])

    def prepare_decode(self, components: Components, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """[B, C, H/8, W/8], with the VAE's scale and shift undone."""
        config = components.vae.config
        latents = batch.denoised.to(components.vae.dtype)
        return (latents / config.scaling_factor) + config.shift_factor, {}

    def post_decode(self, components: Components, decoded: Tensor) -> Tensor:
        return components.holder.image_processor.postprocess(decoded, output_type="pt")


def _captions(embeds: Embeds, dtype: torch.dtype) -> dict[str, list[Tensor]]:
    return {"cap_feats": [caption.to(dtype) for caption in embeds[0]]}

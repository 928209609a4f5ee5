"""Stable Diffusion 3 and 3.5: how their prompts, latents, schedule and predictions are made.

Legend: B samples, L text tokens, D width, C latent channels. Source of every formula:
`StableDiffusion3Pipeline.__call__` of diffusers, whose arithmetic this follows bit for bit.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from difftool.components.loaded import Components
from difftool.components.schedulers import fresh_scheduler, shift_by_length
from difftool.errors import PlanError
from difftool.families.sd3.caching import CACHE
from difftool.families.sd3.facts import FACTS, PIPELINE, SKIP, SKIP_DEFAULTS, skip_steps
from difftool.families.sd3.layer_names import LAYER_NAMES
from difftool.families.sd3.sharding import SEQUENCE, TENSOR
from difftool.pipeline.batch import Batch, Branch, Embeds
from difftool.pipeline.config import PipelineConfig
from difftool.pipeline.held import remembered
from difftool.pipeline.stage import PipelineStage
from difftool.stages.standard import standard_t2i_stages


class SD3Config(PipelineConfig):
    """Stable Diffusion 3 medium, 3.5 medium, large, large-turbo and checkpoints of their layout."""

    facts = FACTS
    pipeline_class = holder = PIPELINE
    roles = {
        "text_encoding": ("text_encoder", "text_encoder_2", "text_encoder_3"),
        "denoising": ("transformer",),
        "decoding": ("vae",),
    }
    layer_names = LAYER_NAMES
    sequence, tensor, cache = SEQUENCE, TENSOR, CACHE
    joint = ("negative", "positive")

    def stages(self) -> list[PipelineStage]:
        return standard_t2i_stages(self)

    def encode_prompt(self, components: Components, batch: Batch, device: torch.device, *, negative: bool) -> Embeds:
        """[B, L, D] of both CLIPs and T5 in sequence (zeros for a T5 that is not there), and [B, D] of CLIP, pooled."""
        name = "negative_prompt" if negative else "prompt"
        prompts = getattr(batch, name)
        second, third = (batch.extra.get(f"{name}_{i}") for i in (2, 3))
        embeds, _, pooled, _ = components.holder.encode_prompt(
            prompt=prompts,
            prompt_2=[second] * len(prompts) if second else None,
            prompt_3=[third] * len(prompts) if third else None,
            device=device,
            do_classifier_free_guidance=False,
            clip_skip=None if negative else batch.extra.get("clip_skip"),
            max_sequence_length=batch.max_sequence_length,
        )
        return [embeds, pooled]

    def prepare_latents(
        self, components: Components, batch: Batch, device: torch.device
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Noise [B, C, H/8, W/8]."""
        transformer, generators = components.transformer, batch.generators()
        latents = components.holder.prepare_latents(
            len(generators),
            transformer.config.in_channels,
            batch.height,
            batch.width,
            transformer.dtype,
            device,
            generators,
        )
        return latents, tuple(latents.shape)

    def prepare_timesteps(self, components: Components, batch: Batch, device: torch.device) -> tuple[Any, Tensor]:
        """The scheduler's own sigmas, shifted by a constant, or by the number of image tokens where its config asks."""
        scheduler = fresh_scheduler(components.scheduler, batch.schedule)
        sigmas, mu = batch.schedule.get("sigmas"), batch.extra.get("mu")
        spacing = {"sigmas": sigmas} if sigmas else {"num_inference_steps": batch.num_inference_steps}
        if scheduler.config.get("use_dynamic_shifting"):
            spacing["mu"] = self._mu(components, batch, scheduler.config) if mu is None else mu
        elif mu is not None:
            raise PlanError(
                f"sampling.extra.mu={mu}: the scheduler shifts by a constant and ignores it",
                hint="set sampling.scheduler.flow_shift, or use_dynamic_shifting in sampling.scheduler.config",
            )
        scheduler.set_timesteps(device=device, **spacing)
        scheduler.set_begin_index(0)  # else the first step searches the timesteps on the device
        return scheduler, scheduler.timesteps

    def _mu(self, components: Components, batch: Batch, config: Mapping[str, Any]) -> float:
        patch, (height, width) = components.transformer.config.patch_size, batch.latents.shape[2:]
        return shift_by_length(config, (height // patch) * (width // patch), max_shift=1.16)

    def make_branches(self, components: Components, batch: Batch, device: torch.device) -> tuple[Branch, ...]:
        """Positive, negative, and the positive one without `skip_guidance_layers` in the steps that guide by it."""
        dtype, steps = components.transformer.dtype, len(batch.timesteps)
        positive = Branch("positive", _texts(batch.prompt_embeds, dtype), range(steps))
        if batch.negative_prompt_embeds is None:
            return (positive,)
        negative = Branch("negative", _texts(batch.negative_prompt_embeds, dtype), range(steps))
        if SKIP not in batch.extra:
            return positive, negative
        skipping = {**positive.kwargs, "skip_layers": batch.extra[SKIP]}
        return positive, negative, Branch("skipping", skipping, skip_steps(batch.extra, steps))

    def loop_constants(self, components: Components, batch: Batch) -> AbstractContextManager[None]:
        """The texts' projection reads nothing but the texts."""
        return remembered(components.transformer, "context_embedder")

    def model_timesteps(self, batch: Batch, latents: Tensor) -> Sequence[Tensor]:
        """From 1000 to 0, in fp32 whatever the denoiser computes in."""
        return batch.timesteps[:, None].expand(-1, latents.shape[0]).unbind()

    def predict(self, transformer: nn.Module, model_input: Tensor, time: Tensor, branch: Branch) -> Tensor:
        """[B, C, H/8, W/8] velocity."""
        return transformer(hidden_states=model_input, timestep=time, return_dict=False, **branch.kwargs)[0]

    def combine(self, predictions: Mapping[str, Tensor], batch: Batch, i: int) -> Tensor:
        """Guided, and further away from the prediction that skips layers."""
        guided = super().combine(predictions, batch, i)
        if "skipping" not in predictions:
            return guided
        key = "skip_layer_guidance_scale"
        return guided + (predictions["positive"] - predictions["skipping"]) * batch.extra.get(key, SKIP_DEFAULTS[key])

    def prepare_decode(self, components: Components, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """[B, C, H/8, W/8], with the VAE's scale and shift undone."""
        config = components.vae.config
        latents = (batch.denoised / config.scaling_factor) + config.shift_factor
        return latents.to(components.vae.dtype), {}

    def post_decode(self, components: Components, decoded: Tensor) -> Tensor:
        return components.holder.image_processor.postprocess(decoded, output_type="pt")


def _texts(embeds: Embeds, dtype: torch.dtype) -> dict[str, Tensor]:
    sequence, pooled = embeds
    return {"encoder_hidden_states": sequence.to(dtype), "pooled_projections": pooled.to(dtype)}

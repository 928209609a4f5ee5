"""Wan 2.1 and 2.2: how prompts, pictures, latents, schedule and predictions are made.

Legend: B samples, C latent channels, F latent frames, H and W latent rows and columns, S tokens (patches of 2 x 2
latents), L text tokens, D width. Source of every formula: `WanPipeline.__call__` and
`WanImageToVideoPipeline.__call__` of diffusers, whose arithmetic this follows bit for bit.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from difftool.components.loaded import Components
from difftool.components.schedulers import fresh_scheduler
from difftool.families.wan.caching import CACHE
from difftool.families.wan.facts import DMD_SHIFT, DMD_STEPS, FACTS
from difftool.families.wan.layer_names import LAYER_NAMES
from difftool.families.wan.sharding import SEQUENCE, TENSOR
from difftool.pipeline.batch import Batch, Branch, Embeds
from difftool.pipeline.config import PictureEmbeds, PictureLatents
from difftool.pipeline.held import Held, replaced
from difftool.pipeline.stage import PipelineStage
from difftool.stages.denoising import DenoisingStage
from difftool.stages.dmd_denoising import DmdDenoisingStage, DmdSchedule, nearest_sigmas
from difftool.stages.standard import standard_t2v_stages, standard_ti2i_stages, standard_ti2v_stages

NOISY_TOKENS = "noisy_tokens"  # in a branch, for `predict` alone


@dataclass(frozen=True)
class Given:
    """Condition pictures as latents, for one of two ways to use them.

    `beside` [B, 4 + C, F, H, W], which frames are given and their latents, is put beside the noise. Else `kept`
    [B, C, F, H, W], the first frame's latents, takes the noise's place where `noisy` [1, 1, F, H, W] is 0.
    """

    beside: Tensor | None = None
    kept: Tensor | None = None
    noisy: Tensor | None = None


class WanConfig(PictureLatents):
    """Wan 2.1 and 2.2 text to video; TI2V-5B from a first frame too."""

    facts = FACTS
    pipeline_class = "WanPipeline"
    holder = "WanImageToVideoPipeline"  # its helpers do what WanPipeline's do, and take pictures
    roles = {
        "text_encoding": ("text_encoder",),
        "denoising": ("transformer", "transformer_2"),
        "decoding": ("vae",),
    }
    layer_names = LAYER_NAMES
    sequence, tensor, cache = SEQUENCE, TENSOR, CACHE

    def stages(self) -> list[PipelineStage]:
        return standard_ti2i_stages(self)

    def encode_prompt(self, components: Components, batch: Batch, device: torch.device, *, negative: bool) -> Embeds:
        """[B, L, D] of UMT5, zero beyond each text."""
        embeds, _ = components.holder.encode_prompt(
            prompt=batch.negative_prompt if negative else batch.prompt,
            do_classifier_free_guidance=False,
            max_sequence_length=batch.max_sequence_length,
            device=device,
        )
        return [embeds]

    def encode_image_latents(self, components: Components, batch: Batch, device: torch.device) -> Given:
        holder, dtype = components.holder, torch.float32
        frames = [
            holder.video_processor.preprocess(picture.image, height=batch.height, width=batch.width).to(device, dtype)
            for picture in (*batch.image, batch.last_image)
            if picture is not None
        ]
        last = frames[1] if len(frames) > 1 else None
        size = components.vae.config.z_dim, batch.height, batch.width, batch.num_frames
        # latents that are given are passed through: the noise is drawn later
        noise = torch.empty(0, device=device)
        _, condition, *masks = holder.prepare_latents(
            frames[0], len(batch.prompt), *size, dtype, device, latents=noise, last_image=last
        )
        if not masks:
            return Given(beside=condition.to(components.transformer.dtype))
        return Given(kept=(1 - masks[0]) * condition, noisy=masks[0])

    def prepare_latents(
        self, components: Components, batch: Batch, device: torch.device
    ) -> tuple[Tensor, tuple[int, ...]]:
        """fp32 noise [B, C, F, H, W]."""
        holder, generators = components.holder, batch.generators()
        frames = (batch.num_frames - 1) // holder.vae_scale_factor_temporal + 1
        sides = (side // holder.vae_scale_factor_spatial for side in (batch.height, batch.width))
        shape = (len(generators), components.vae.config.z_dim, frames, *sides)
        return randn_tensor(shape, generator=generators, device=device, dtype=torch.float32), shape

    def prepare_timesteps(self, components: Components, batch: Batch, device: torch.device) -> tuple[Any, Tensor]:
        """The scheduler's own schedule for this number of steps."""
        scheduler = fresh_scheduler(components.scheduler, batch.schedule)
        scheduler.set_timesteps(batch.num_inference_steps, device=device)
        scheduler.set_begin_index(0)  # else the first step searches the timesteps on the device
        return scheduler, scheduler.timesteps

    def make_branches(self, components: Components, batch: Batch, device: torch.device) -> tuple[Branch, ...]:
        two = batch.boundary_ratio is not None
        assert two == (components.holder.config.boundary_ratio is not None), batch.boundary_ratio
        dtype = components.transformer.dtype
        shared: dict[str, Tensor] = {}
        if batch.image_embeds is not None:
            shared["encoder_hidden_states_image"] = batch.image_embeds[0].to(dtype)
        if components.holder.config.expand_timesteps:
            shared[NOISY_TOKENS] = self._noisy_tokens(components, batch)
        embeds = {"positive": batch.prompt_embeds, "negative": batch.negative_prompt_embeds}
        return tuple(
            Branch(name, {"encoder_hidden_states": values[0].to(dtype), **shared}, range(len(batch.timesteps)))
            for name, values in embeds.items()
            if values is not None
        )

    def _noisy_tokens(self, components: Components, batch: Batch) -> Tensor:
        """[1, S], 0 where a token belongs to a given frame."""
        noisy = batch.latents.new_ones(batch.latents.shape[2:])
        if batch.image_latents is not None:
            noisy = batch.image_latents.noisy[0, 0]
        _, rows, columns = components.transformer.config.patch_size
        return noisy[:, ::rows, ::columns].flatten()[None]

    @contextmanager
    def loop_constants(self, components: Components, batch: Batch) -> Iterator[None]:
        """The rotary table depends on the size alone, which no step and no branch changes."""
        named = [getattr(components, name) for name in self.roles["denoising"]]
        with ExitStack() as stack:
            for transformer in (each for each in named if each is not None):
                stack.enter_context(replaced(transformer, rope=Held(transformer.rope(batch.latents))))
            yield

    def model_input(self, batch: Batch, latents: Tensor, i: int) -> Tensor:
        """[B, C, F, H, W], or [B, 2 C + 4, F, H, W] with the given frames beside the noise."""
        dtype, given = batch.branches[0].kwargs["encoder_hidden_states"].dtype, batch.image_latents
        if given is None:
            return latents.to(dtype)
        if given.beside is not None:
            return torch.cat([latents.to(dtype), given.beside], dim=1)
        return (given.kept + given.noisy * latents).to(dtype)

    def select_transformer(self, components: Components, batch: Batch, i: int) -> nn.Module:
        """The high-noise expert first, where there are two."""
        transformer: nn.Module = components.transformer_2 if _is_low_noise(batch, i) else components.transformer
        return transformer

    def predict(self, transformer: nn.Module, model_input: Tensor, time: Tensor, branch: Branch) -> Tensor:
        """[B, C, F, H, W] velocity. Where tokens have times of their own, that of a given frame is 0."""
        kwargs = dict(branch.kwargs)
        if (noisy := kwargs.pop(NOISY_TOKENS, None)) is not None:
            time = time[:, None] * noisy
        return transformer(hidden_states=model_input, timestep=time, return_dict=False, **kwargs)[0]

    def guidance_at(self, batch: Batch, i: int) -> float:
        """That of the step's expert."""
        if _is_low_noise(batch, i) and batch.guidance_scale_2 is not None:
            return batch.guidance_scale_2
        return super().guidance_at(batch, i)

    def after_loop(self, batch: Batch, latents: Tensor) -> Tensor:
        given = batch.image_latents
        return latents if given is None or given.beside is not None else given.kept + given.noisy * latents

    def video_grid(self, transformer: nn.Module, given: Mapping[str, Any]) -> tuple[int, int, int]:
        latents, patch = given["hidden_states"].shape[2:], transformer.config.patch_size
        return latents[0] // patch[0], latents[1] // patch[1], latents[2] // patch[2]

    def prepare_decode(self, components: Components, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """[B, C, F, H, W] with the VAE's mean and standard deviation by channel undone."""
        vae = components.vae
        latents = batch.denoised.to(vae.dtype)
        shape = (1, vae.config.z_dim, 1, 1, 1)
        mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents.device, latents.dtype)
        inverse = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(latents.device, latents.dtype)
        return latents / inverse + mean, {}

    def post_decode(self, components: Components, decoded: Tensor) -> Tensor:
        return components.holder.video_processor.postprocess_video(decoded, output_type="pt").transpose(1, 2)


class WanImageToVideoConfig(WanConfig, PictureEmbeds):
    """Wan 2.1 and 2.2 image to video; 2.1 sees the picture through CLIP too."""

    pipeline_class = "WanImageToVideoPipeline"
    roles = {**WanConfig.roles, "image_encoding": ("image_encoder",)}

    def stages(self) -> list[PipelineStage]:
        return standard_ti2v_stages(self)

    def encode_image(self, components: Components, batch: Batch, device: torch.device) -> Embeds:
        """[B, tokens, D] of CLIP's last layer but one; [2 B, tokens, D] with a last frame."""
        pictures = [picture.image for picture in (*batch.image, batch.last_image) if picture is not None]
        return [components.holder.encode_image(pictures, device).repeat(len(batch.prompt), 1, 1)]


class WanDMDConfig(WanConfig):
    """FastWan 2.2: TI2V-5B distilled to a few steps without guidance, from text alone."""

    pipeline_class = "WanDMDPipeline"
    roles = {**WanConfig.roles, "denoising": ("transformer",)}

    def stages(self) -> list[PipelineStage]:
        stages = standard_t2v_stages(self)
        return [DmdDenoisingStage(self) if type(stage) is DenoisingStage else stage for stage in stages]

    def runs_negative_branch(self, batch: Batch) -> bool:
        return False

    def prepare_timesteps(self, components: Components, batch: Batch, device: torch.device) -> tuple[Any, Tensor]:
        """The times it was distilled at, and the noise between them: each sample's generator goes on where
        `prepare_latents` left it.
        """
        shape, generators = batch.latents.shape, batch.generators()
        draws = [randn_tensor(shape, generator=generators, device=device, dtype=torch.float32) for _ in DMD_STEPS]
        sigmas = nearest_sigmas(DMD_STEPS, shift=DMD_SHIFT)
        return DmdSchedule(sigmas, draws[1:]), torch.tensor(DMD_STEPS, device=device)


def _is_low_noise(batch: Batch, i: int) -> bool:
    """Whether step i belongs to the second expert; known on the host."""
    if batch.boundary_ratio is None:
        return False
    return batch.times[i] < batch.boundary_ratio * batch.scheduler.config.num_train_timesteps

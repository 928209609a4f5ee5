"""Qwen-Image: how its prompts, pictures, latents, schedule and predictions are made.

Legend: B samples, S image tokens (2 x 2 latent patches) of the result, P those of condition pictures, L text tokens,
D width, C latent channels. Source of every formula: `__call__` of diffusers' `QwenImagePipeline`,
`QwenImageEditPipeline` and `QwenImageEditPlusPipeline`, whose arithmetic this follows bit for bit; the areas that the
last two resize pictures to are parameters here.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor, nn

from difftool.components.loaded import Components
from difftool.components.schedulers import check_steps, fresh_scheduler, shift_by_length
from difftool.families.qwenimage.caching import CACHE
from difftool.families.qwenimage.facts import CONDITION_IMAGE_SIZE, FACTS, VAE_IMAGE_SIZE, fit
from difftool.families.qwenimage.sharding import SEQUENCE, TENSOR
from difftool.pipeline.batch import Batch, Branch, Embeds
from difftool.pipeline.config import PictureLatents, PipelineConfig
from difftool.pipeline.held import Remembered, replaced
from difftool.pipeline.stage import PipelineStage
from difftool.stages.standard import standard_t2i_stages, standard_ti2i_stages


class QwenImageConfig(PipelineConfig):
    """Qwen-Image, Qwen-Image-2512 and checkpoints of their layout."""

    facts = FACTS
    pipeline_class = holder = "QwenImagePipeline"
    roles = {"text_encoding": ("text_encoder",), "denoising": ("transformer",), "decoding": ("vae",)}
    sequence, tensor, cache = SEQUENCE, TENSOR, CACHE

    def stages(self) -> list[PipelineStage]:
        return standard_t2i_stages(self)

    def encode_prompt(self, components: Components, batch: Batch, device: torch.device, *, negative: bool) -> Embeds:
        """[B, L, D] of Qwen2.5-VL, and their mask [B, L], None where the lengths are equal."""
        return list(
            components.holder.encode_prompt(
                prompt=batch.negative_prompt if negative else batch.prompt,
                device=device,
                max_sequence_length=batch.max_sequence_length,
            )
        )

    def prepare_latents(
        self, components: Components, batch: Batch, device: torch.device
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Packed noise [B, S, 4C]; its shape before packing is [B, C, 1, H/8, W/8]."""
        transformer, generators = components.transformer, batch.generators()
        count, channels = len(generators), transformer.config.in_channels // 4
        height, width = (2 * side for side in self.patches(components, batch))
        shape = (count, 1, channels, height, width)
        noise = randn_tensor(shape, generator=generators, device=device, dtype=transformer.dtype)
        packed = components.holder._pack_latents(noise, count, channels, height, width)
        return packed, (count, channels, 1, height, width)

    def patches(self, components: Components, batch: Batch) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        side = 2 * components.holder.vae_scale_factor
        return batch.height // side, batch.width // side

    def prepare_timesteps(self, components: Components, batch: Batch, device: torch.device) -> tuple[Any, Tensor]:
        """Sigmas from 1 to 1/N, shifted by the number of image tokens where the scheduler's config asks for it."""
        scheduler = fresh_scheduler(components.scheduler, batch.schedule)
        steps = batch.num_inference_steps
        mu = shift_by_length(scheduler.config, batch.latents.shape[1])
        check_steps(scheduler, steps)
        sigmas = batch.schedule.get("sigmas") or np.linspace(1.0, 1 / steps, steps)
        scheduler.set_timesteps(sigmas=sigmas, device=device, mu=mu)
        scheduler.set_begin_index(0)  # else the first step searches the timesteps on the device
        return scheduler, scheduler.timesteps

    def image_shapes(self, components: Components, batch: Batch) -> list[tuple[int, int, int]]:
        """Frames, rows and columns of tokens of each picture that the denoiser sees, the one it makes first."""
        return [(1, *self.patches(components, batch))]

    def make_branches(self, components: Components, batch: Batch, device: torch.device) -> tuple[Branch, ...]:
        dtype = components.transformer.dtype
        shapes = [self.image_shapes(components, batch)] * len(batch.prompt)
        embeds = {"positive": batch.prompt_embeds, "negative": batch.negative_prompt_embeds}
        return tuple(
            Branch(
                name,
                {
                    "encoder_hidden_states": sequence.to(dtype),
                    "encoder_hidden_states_mask": mask,
                    "img_shapes": shapes,
                },
                range(len(batch.timesteps)),
            )
            for name, (sequence, mask) in ((name, pair) for name, pair in embeds.items() if pair is not None)
        )

    def loop_constants(self, components: Components, batch: Batch) -> AbstractContextManager[None]:
        """The rotary tables are the same at every step; the branches have their own text lengths."""
        transformer = components.transformer
        tables = Remembered(transformer.pos_embed, key=lambda shapes, max_txt_seq_len, device: max_txt_seq_len)
        for branch in batch.branches:
            sequence, shapes = branch.kwargs["encoder_hidden_states"], branch.kwargs["img_shapes"]
            tables(shapes, max_txt_seq_len=sequence.shape[1], device=sequence.device)
        return replaced(transformer, pos_embed=tables)

    def model_timesteps(self, batch: Batch, latents: Tensor) -> Sequence[Tensor]:
        """Flow time in [0, 1]; the transformer multiplies by 1000 again."""
        return [time / 1000 for time in super().model_timesteps(batch, latents)]

    def predict(self, transformer: nn.Module, model_input: Tensor, time: Tensor, branch: Branch) -> Tensor:
        """[B, S, 4C] velocity."""
        return transformer(hidden_states=model_input, timestep=time, return_dict=False, **branch.kwargs)[0]

    def combine(self, predictions: Mapping[str, Tensor], batch: Batch, i: int) -> Tensor:
        """Guided, each token has the length that it has in the positive prediction."""
        guided = super().combine(predictions, batch, i)
        if "negative" not in predictions:
            return guided
        positive = predictions["positive"]
        return guided * (torch.norm(positive, dim=-1, keepdim=True) / torch.norm(guided, dim=-1, keepdim=True))

    def prepare_decode(self, components: Components, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """Unpacked [B, C, 1, H/8, W/8], with the normalisation of each channel undone."""
        holder, vae = components.holder, components.vae
        latents = holder._unpack_latents(batch.denoised, batch.height, batch.width, holder.vae_scale_factor)
        latents = latents.to(vae.dtype)
        mean, std = channel_statistics(vae, latents)
        return latents / (1.0 / std) + mean, {}

    def post_decode(self, components: Components, decoded: Tensor) -> Tensor:
        """The VAE makes a video of one frame."""
        return components.holder.image_processor.postprocess(decoded[:, :, 0], output_type="pt")


class QwenImageEditPlusConfig(QwenImageConfig, PictureLatents):
    """Qwen-Image-Edit-2509 and -2511: one picture or several."""

    pipeline_class = holder = "QwenImageEditPlusPipeline"
    encoding_inputs = ("max_sequence_length", "extra", "image")

    def stages(self) -> list[PipelineStage]:
        return standard_ti2i_stages(self)

    def encode_prompt(self, components: Components, batch: Batch, device: torch.device, *, negative: bool) -> Embeds:
        """[B, L, D] of Qwen2.5-VL for the pictures and the text, and their mask [B, L] or None."""
        return list(
            components.holder.encode_prompt(
                prompt=batch.negative_prompt if negative else batch.prompt,
                image=self.condition_images(components, batch),
                device=device,
            )
        )

    def condition_images(self, components: Components, batch: Batch) -> Any:
        """The pictures as the text encoder sees them, before its own processor."""
        area = batch.extra.get("condition_image_size", CONDITION_IMAGE_SIZE)
        return [_resized(components, picture.image, fit(area, *picture.image.size)) for picture in batch.image]

    def encode_image_latents(self, components: Components, batch: Batch, device: torch.device) -> Tensor:
        """[1, P, 4C] packed latents of every picture, one after the other."""
        holder, channels = components.holder, components.transformer.config.in_channels // 4
        packed = []
        for picture, (width, height) in zip(batch.image, vae_sizes(batch), strict=True):
            image = holder.image_processor.preprocess(picture.image, height, width).unsqueeze(2)
            latents = holder._encode_vae_image(image=image.to(device, components.vae.dtype), generator=None)
            packed.append(holder._pack_latents(latents, 1, channels, *latents.shape[3:]))
        return torch.cat(packed, dim=1).to(components.transformer.dtype)

    def image_shapes(self, components: Components, batch: Batch) -> list[tuple[int, int, int]]:
        """The result first, then the pictures."""
        side = 2 * components.holder.vae_scale_factor
        pictures = [(1, height // side, width // side) for width, height in vae_sizes(batch)]
        return [*super().image_shapes(components, batch), *pictures]

    def model_input(self, batch: Batch, latents: Tensor, i: int) -> Tensor:
        """[B, S + P, 4C]: the pictures' latents follow those of the result."""
        return torch.cat([latents, batch.image_latents], dim=1)

    def predict(self, transformer: nn.Module, model_input: Tensor, time: Tensor, branch: Branch) -> Tensor:
        """[B, S, 4C] velocity of the result alone."""
        tokens = math.prod(branch.kwargs["img_shapes"][0][0])
        return super().predict(transformer, model_input, time, branch)[:, :tokens]


class QwenImageEditConfig(QwenImageEditPlusConfig):
    """Qwen-Image-Edit: one picture, which the text encoder sees in the size that the VAE does."""

    pipeline_class = holder = "QwenImageEditPipeline"

    def condition_images(self, components: Components, batch: Batch) -> Image.Image:
        [picture], [size] = batch.image, vae_sizes(batch)
        return _resized(components, picture.image, size)


def vae_sizes(batch: Batch) -> list[tuple[int, int]]:
    """Width and height of each picture as the VAE sees it."""
    area = batch.extra.get("vae_image_size", VAE_IMAGE_SIZE)
    return [fit(area, *picture.image.size) for picture in batch.image]


def _resized(components: Components, image: Image.Image, size: tuple[int, int]) -> Image.Image:
    width, height = size
    return components.holder.image_processor.resize(image, height, width)


def channel_statistics(vae: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the VAE's latents, [1, C, 1, 1, 1] each."""
    values = (vae.config.latents_mean, vae.config.latents_std)
    mean, std = (torch.tensor(each).view(1, -1, 1, 1, 1).to(like.device, like.dtype) for each in values)
    return mean, std

"""HunyuanVideo: how its prompts, latents, schedule and predictions are made.

Legend: B samples, L text tokens, D width, C latent channels, F frames. Source of every formula:
`HunyuanVideoPipeline.__call__` of diffusers. One sample's text is cut to the tokens it has, so that no attention needs
a mask: a masked kernel is slower, and the flash kernels take none.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from difftool.components.loaded import Components
from difftool.components.schedulers import fresh_scheduler
from difftool.families.hunyuanvideo.caching import CACHE
from difftool.families.hunyuanvideo.facts import FACTS
from difftool.families.hunyuanvideo.layer_names import LAYER_NAMES
from difftool.families.hunyuanvideo.sharding import SEQUENCE, TENSOR
from difftool.pipeline.batch import Batch, Branch, Embeds
from difftool.pipeline.config import PipelineConfig
from difftool.pipeline.held import Held, replaced
from difftool.pipeline.stage import PipelineStage
from difftool.stages.standard import standard_t2v_stages

MASK = 3  # the place of the attention mask among the arguments of a block


def without_mask(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A block's arguments with its attention mask left out."""
    return (*args[:MASK], None, *args[MASK + 1 :])


class HunyuanVideoConfig(PipelineConfig):
    """HunyuanVideo, FastHunyuan and checkpoints of their layout."""

    facts = FACTS
    pipeline_class = holder = "HunyuanVideoPipeline"
    roles = {
        "text_encoding": ("text_encoder", "text_encoder_2"),
        "denoising": ("transformer",),
        "decoding": ("vae",),
    }
    layer_names = LAYER_NAMES
    sequence, tensor, cache = SEQUENCE, TENSOR, CACHE

    def stages(self) -> list[PipelineStage]:
        return standard_t2v_stages(self)

    def encode_prompt(self, components: Components, batch: Batch, device: torch.device, *, negative: bool) -> Embeds:
        """[B, L, D] of Llama, [B, D] of CLIP, pooled, and the mask [B, L] of the tokens that are text."""
        embeds, pooled, mask = components.holder.encode_prompt(
            prompt=batch.negative_prompt if negative else batch.prompt,
            device=device,
            max_sequence_length=batch.max_sequence_length,
        )
        if len(mask) == 1:
            length = int(mask.sum())
            embeds, mask = embeds[:, :length], mask[:, :length]
        return [embeds, pooled, mask]

    def prepare_latents(
        self, components: Components, batch: Batch, device: torch.device
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Noise [B, C, F', H/8, W/8] in fp32."""
        generators, channels = batch.generators(), components.transformer.config.in_channels
        size = (batch.height, batch.width, batch.num_frames)
        latents = components.holder.prepare_latents(len(generators), channels, *size, torch.float32, device, generators)
        return latents, tuple(latents.shape)

    def prepare_timesteps(self, components: Components, batch: Batch, device: torch.device) -> tuple[Any, Tensor]:
        """Sigmas from 1 down to 1/N, shifted by the scheduler."""
        scheduler = fresh_scheduler(components.scheduler, batch.schedule)
        sigmas = batch.schedule.get("sigmas") or np.linspace(1.0, 0.0, batch.num_inference_steps + 1)[:-1]
        scheduler.set_timesteps(sigmas=sigmas, device=device)
        scheduler.set_begin_index(0)
        return scheduler, scheduler.timesteps

    def make_branches(self, components: Components, batch: Batch, device: torch.device) -> tuple[Branch, ...]:
        dtype = components.transformer.dtype
        guidance = None
        if components.transformer.config.guidance_embeds:
            guidance = torch.tensor([batch.guidance_scale] * len(batch.prompt), dtype=dtype, device=device) * 1000.0
        given = {"positive": batch.prompt_embeds, "negative": batch.negative_prompt_embeds}
        return tuple(
            Branch(
                name,
                {
                    "encoder_hidden_states": embeds[0].to(dtype),
                    "pooled_projections": embeds[1].to(dtype),
                    "encoder_attention_mask": embeds[2].to(dtype),
                    "guidance": guidance,
                },
                range(len(batch.timesteps)),
            )
            for name, embeds in given.items()
            if embeds is not None
        )

    @contextmanager
    def loop_constants(self, components: Components, batch: Batch) -> Iterator[None]:
        """The rotary table, and no mask where every text token is one."""
        transformer = components.transformer
        with ExitStack() as undo:
            undo.enter_context(replaced(transformer, rope=Held(transformer.rope(batch.latents))))
            if len(batch.prompt) == 1:
                for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
                    undo.callback(block.register_forward_pre_hook(without_mask).remove)
            yield

    def model_input(self, batch: Batch, latents: Tensor, i: int) -> Tensor:
        """In the denoiser's own dtype, which is that of its text."""
        return latents.to(batch.branches[0].kwargs["encoder_hidden_states"].dtype)

    def predict(self, transformer: nn.Module, model_input: Tensor, time: Tensor, branch: Branch) -> Tensor:
        """[B, C, F', H/8, W/8] velocity."""
        return transformer(hidden_states=model_input, timestep=time, return_dict=False, **branch.kwargs)[0]

    def video_grid(self, transformer: nn.Module, given: Mapping[str, Any]) -> tuple[int, int, int]:
        (frames, rows, columns), config = given["hidden_states"].shape[2:], transformer.config
        return frames // config.patch_size_t, rows // config.patch_size, columns // config.patch_size

    def prepare_decode(self, components: Components, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The VAE's scale undone."""
        return batch.denoised.to(components.vae.dtype) / components.vae.config.scaling_factor, {}

    def post_decode(self, components: Components, decoded: Tensor) -> Tensor:
        """[B, C, F, H, W]; the processor puts frames before channels."""
        return components.holder.video_processor.postprocess_video(decoded, output_type="pt").transpose(1, 2)

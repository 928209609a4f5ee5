"""Tiny Wan checkpoints: one expert or two, with and without CLIP, a time for every step or for every token."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from families.cases.case import Case, picture
from families.cases.parts import t5_tokenizer, umt5_text
from families.plain_dmd import STEPS, PlainDmd, WanDMDPipeline
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

CLIP_WIDTH = 16


def wan_transformer(channels: int, **changes: Any) -> WanTransformer3DModel:
    """2 blocks of width 24."""
    config = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 4,
        "attention_head_dim": 6,
        "in_channels": channels,
        "out_channels": channels,
        "text_dim": 24,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return WanTransformer3DModel(**{**config, **changes}).eval()


def wan_vae(**changes: Any) -> AutoencoderKLWan:
    """4 x in time and 8 x in space, 4 latent channels."""
    config = {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "latents_mean": [-0.2, 0.1, 0.3, -0.4],
        "latents_std": [0.9, 1.4, 1.1, 0.8],
    }
    return AutoencoderKLWan(**{**config, **changes}).eval()


def wan22_vae() -> AutoencoderKLWan:
    """4 x in time and 16 x in space, of which 2 x are patches, as TI2V-5B's."""
    patches = {"patch_size": 2, "in_channels": 12, "out_channels": 12}
    return wan_vae(is_residual=True, decoder_base_dim=4, scale_factor_spatial=16, **patches)


def clip_vision() -> Mapping[str, Any]:
    """An image encoder that sees 4 patches and a class token, and its processor."""
    config = CLIPVisionConfig(
        hidden_size=CLIP_WIDTH,
        intermediate_size=2 * CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    size = {"crop_size": {"height": 16, "width": 16}, "size": {"shortest_edge": 16}}
    return {"image_encoder": CLIPVisionModel(config).eval(), "image_processor": CLIPImageProcessorPil(**size)}


def wan(kind: Callable[..., DiffusionPipeline], make: Callable[[], Mapping[str, Any]]) -> Callable[[], Any]:
    """Builds the pipeline class with the transformers, and what else differs, that `make` makes."""

    def build() -> DiffusionPipeline:
        torch.manual_seed(0)
        tokenizer = t5_tokenizer()
        modules = {
            "tokenizer": tokenizer,
            "text_encoder": umt5_text(tokenizer, 24),
            "vae": wan_vae(),
            "scheduler": UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            **make(),
        }
        return kind(**modules)

    return build


def with_pictures(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """The stock pipeline that takes a first frame, around the modules of the one that takes none."""
    return WanImageToVideoPipeline(
        **pipeline.components, expand_timesteps=True, **{name: None for name in ("image_encoder", "image_processor")}
    )


def seeing(**changes: Any) -> WanTransformer3DModel:
    """A transformer that attends to CLIP's tokens and takes the picture's latents beside the noise."""
    return wan_transformer(4, in_channels=12, image_dim=CLIP_WIDTH, added_kv_proj_dim=24, **changes)


def two_experts(channels: int) -> dict[str, Any]:
    first, second = (wan_transformer(4, in_channels=channels) for _ in range(2))
    return {"transformer": first, "transformer_2": second, "boundary_ratio": 0.75}


SMALL = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 24}
GUIDED = {**SMALL, "guidance_scale": 5.0, "negative_prompt": [""]}
FROM_PICTURE = {**GUIDED, "image": (picture(40, 24),)}
WITH_LAST = {"last_image": picture(24, 40, seed=1)}
OF_EXPERTS = {"boundary_ratio": 0.75, "guidance_scale_2": 2.0}
OF_5B = {**GUIDED, "height": 64, "width": 64}

CASES = (
    Case("wan21-t2v", "wan", "WanPipeline", wan(WanPipeline, lambda: {"transformer": wan_transformer(4)}), GUIDED),
    Case(
        "wan21-i2v",
        "wan",
        "WanImageToVideoPipeline",
        wan(WanImageToVideoPipeline, lambda: {"transformer": seeing(), **clip_vision()}),
        FROM_PICTURE,
    ),
    Case(
        "wan21-flf2v",
        "wan",
        "WanImageToVideoPipeline",
        wan(WanImageToVideoPipeline, lambda: {"transformer": seeing(pos_embed_seq_len=10), **clip_vision()}),
        {**FROM_PICTURE, **WITH_LAST},
    ),
    Case(
        "wan22-t2v",
        "wan",
        "WanPipeline",
        wan(WanPipeline, lambda: two_experts(4)),
        {**GUIDED, **OF_EXPERTS},
        {"one scale for both": {"guidance_scale_2": None}},
    ),
    Case(
        "wan22-i2v",
        "wan",
        "WanImageToVideoPipeline",
        wan(WanImageToVideoPipeline, lambda: two_experts(12)),
        {**FROM_PICTURE, **OF_EXPERTS},
        {"a last frame": WITH_LAST},
    ),
    Case(
        "wan22-ti2v",
        "wan",
        "WanPipeline",
        wan(WanPipeline, lambda: {"transformer": wan_transformer(4), "vae": wan22_vae(), "expand_timesteps": True}),
        OF_5B,
    ),
    Case(
        "wan22-ti2v-picture",
        "wan",
        "WanPipeline",
        wan(WanPipeline, lambda: {"transformer": wan_transformer(4), "vae": wan22_vae(), "expand_timesteps": True}),
        {**OF_5B, "image": FROM_PICTURE["image"]},
        reference=with_pictures,
    ),
    Case(
        "fastwan22-ti2v",
        "wan",
        "WanDMDPipeline",
        wan(WanDMDPipeline, lambda: {"transformer": wan_transformer(4), "vae": wan22_vae(), "expand_timesteps": True}),
        {**SMALL, "height": 64, "width": 64},
        reference=PlainDmd,
        steps=len(STEPS),
    ),
)

"""Tiny FLUX.1 checkpoints."""

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from families.cases.case import Case, picture
from families.cases.parts import clip_text, clip_tokenizer, picture_vae, t5_text, t5_tokenizer


def flux1(*, guidance_embeds: bool, dynamic_shift: bool, kind: type = FluxPipeline) -> FluxPipeline:
    """FLUX.1 with 2 double and 2 single blocks of width 32, f8 latents of 4 channels."""
    torch.manual_seed(0)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(2, 2, 4),
    )
    vae = picture_vae(scaling_factor=0.36, shift_factor=0.12)
    return kind(
        transformer=transformer.eval(),
        vae=vae,
        text_encoder=clip_text(clip, 32),
        text_encoder_2=t5_text(t5, 24),
        tokenizer=clip,
        tokenizer_2=t5,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic_shift),
    )


SMALL_PICTURE = {"image": (picture(50, 36),), "extra": {"_auto_resize": False}}
CASES = (
    Case(
        "flux1-dev",
        "flux1",
        "FluxPipeline",
        lambda: flux1(guidance_embeds=True, dynamic_shift=True),
        {"height": 64, "width": 64, "guidance_scale": 3.5, "max_sequence_length": 24},
    ),
    Case(
        "flux1-schnell",
        "flux1",
        "FluxPipeline",
        lambda: flux1(guidance_embeds=False, dynamic_shift=False),
        {"height": 64, "width": 64, "max_sequence_length": 24},
    ),
    Case(
        "flux1-kontext",
        "flux1",
        "FluxKontextPipeline",
        lambda: flux1(guidance_embeds=True, dynamic_shift=True, kind=FluxKontextPipeline),
        {"height": 64, "width": 64, "guidance_scale": 2.5, "max_sequence_length": 24, **SMALL_PICTURE},
        {
            "text alone": {"image": (), "extra": {}},
            "a trained size": {"image": (picture(40, 30),), "extra": {}, "num_inference_steps": 1},
        },
        arguments=lambda batch: {"max_area": batch.height * batch.width},
    ),
)

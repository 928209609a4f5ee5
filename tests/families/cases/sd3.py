"""Tiny Stable Diffusion 3 checkpoints."""

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from families.cases.case import Case
from families.cases.parts import clip_projected, clip_tokenizer, picture_vae, t5_text, t5_tokenizer


def sd3(*, t5: bool, dynamic_shift: bool) -> StableDiffusion3Pipeline:
    """SD3 with 3 blocks of width 32, the first with the second attention of 3.5 medium; f8 latents of 4 channels."""
    torch.manual_seed(0)
    clip, third = clip_tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=40,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=12,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    vae = picture_vae(scaling_factor=1.5, shift_factor=0.06)
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        vae=vae,
        text_encoder=clip_projected(clip, 16),
        text_encoder_2=clip_projected(clip, 16),
        text_encoder_3=t5_text(third, 40) if t5 else None,
        tokenizer=clip,
        tokenizer_2=clip,
        tokenizer_3=third if t5 else None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic_shift),
    )


GUIDED = {"guidance_scale": 4.5, "negative_prompt": ["grey"]}
SIZE = {"height": 64, "width": 64, "max_sequence_length": 24}
SKIPPING = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.7}

CASES = (
    Case(
        "sd3-medium",
        "sd3",
        "StableDiffusion3Pipeline",
        lambda: sd3(t5=True, dynamic_shift=False),
        {**SIZE, **GUIDED},
        {
            "skipped layers": {**GUIDED, "extra": SKIPPING},
            "skipped layers by default, 20 steps": {
                **GUIDED,
                "num_inference_steps": 20,
                "extra": {"skip_guidance_layers": [0, 2], "skip_layer_guidance_scale": 1.5},
            },
            "skipped layers, two prompts": {
                "guidance_scale": 4.5,
                "prompt": ["a red circle", "two cats"],
                "negative_prompt": ["grey", "green"],
                "seeds": [1, 2],
                "extra": SKIPPING,
            },
            "three texts": {
                **GUIDED,
                "extra": {
                    "prompt_2": "second",
                    "prompt_3": "third",
                    "negative_prompt_2": "not second",
                    "negative_prompt_3": "not third",
                },
            },
            "fewer layers of CLIP": {**GUIDED, "extra": {"clip_skip": 1}},
        },
    ),
    Case(
        "sd3-turbo",
        "sd3",
        "StableDiffusion3Pipeline",
        lambda: sd3(t5=True, dynamic_shift=True),
        {**SIZE, "guidance_scale": 0.0},
        {"own mu": {"extra": {"mu": 1.7}}},
    ),
    Case(
        "sd3-without-t5",
        "sd3",
        "StableDiffusion3Pipeline",
        lambda: sd3(t5=False, dynamic_shift=False),
        {**SIZE, **GUIDED},
        given=lambda folder: {"text_encoder_3": None, "tokenizer_3": None},
    ),
)

"""Tiny LTX-Video checkpoints."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from families.cases.case import Case, picture
from families.cases.parts import t5_text, t5_tokenizer

from difftool.pipeline.batch import Batch


def ltx(*, timestep_conditioning: bool) -> LTXPipeline:
    """LTX-Video with 2 blocks of width 32 and a VAE that divides by 32 in space and 8 in time, like the real one."""
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=24,
    )
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        timestep_conditioning=timestep_conditioning,
        scaling_factor=0.9,
    )
    torch.nn.init.normal_(vae.latents_mean, std=0.1)
    torch.nn.init.uniform_(vae.latents_std, 0.5, 1.5)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    return LTXPipeline(
        scheduler=scheduler,
        vae=vae.eval(),
        text_encoder=t5_text(tokenizer, 24),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )


def from_picture(pipeline: LTXPipeline) -> LTXImageToVideoPipeline:
    return LTXImageToVideoPipeline(**pipeline.components)


def frame_rate(batch: Batch) -> dict[str, Any]:
    return {"frame_rate": batch.fps}


GUIDED = {"guidance_scale": 3.0, "negative_prompt": ["grey"]}
SIZE = {"height": 64, "width": 64, "num_frames": 17, "fps": 25, "max_sequence_length": 24}
DECODED_LATE = {"decode_timestep": 0.05, "decode_noise_scale": 0.025}

CASES = (
    Case(
        "ltx",
        "ltx",
        "LTXPipeline",
        lambda: ltx(timestep_conditioning=False),
        {**SIZE, **GUIDED},
        {
            "rescaled, two prompts": {
                "guidance_scale": 3.0,
                "prompt": ["a red circle", "two cats"],
                "negative_prompt": ["grey", "green"],
                "seeds": [1, 2],
                "extra": {"guidance_rescale": 0.7},
            },
            "slower": {**GUIDED, "fps": 8},
        },
        arguments=frame_rate,
        fewest_steps=2,
    ),
    Case(
        "ltx-timed-decoder",
        "ltx",
        "LTXPipeline",
        lambda: ltx(timestep_conditioning=True),
        {**SIZE, **GUIDED, "extra": DECODED_LATE},
        {"one scale for both": {**GUIDED, "extra": {"decode_timestep": 0.1}}},
        arguments=frame_rate,
        fewest_steps=2,
    ),
    Case(
        "ltx-from-picture",
        "ltx",
        "LTXPipeline",
        lambda: ltx(timestep_conditioning=True),
        {**SIZE, **GUIDED, "image": (picture(50, 40),), "extra": DECODED_LATE},
        {"another picture, rescaled": {**GUIDED, "image": (picture(64, 64, 3),), "extra": {"guidance_rescale": 0.5}}},
        batches=False,
        reference=from_picture,
        arguments=frame_rate,
        fewest_steps=2,
    ),
)

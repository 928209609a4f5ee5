"""A tiny HunyuanVideo: 2 double and 2 single blocks of width 24, latents of 4 channels, f8 and t4."""

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from families.cases.case import Case
from families.cases.parts import clip_text, clip_tokenizer, llama_text, llama_tokenizer


def hunyuanvideo() -> HunyuanVideoPipeline:
    torch.manual_seed(0)
    llama, clip = llama_tokenizer(), clip_tokenizer(77)
    # the pipeline cuts its template off, 95 tokens: bytes would be more, so the first of them are one token
    start = DEFAULT_PROMPT_TEMPLATE["template"].partition("{}")[0]
    llama.add_tokens([start[: 1 - DEFAULT_PROMPT_TEMPLATE["crop_start"]]])
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=6,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 2, 2),
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
    )
    return HunyuanVideoPipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=llama_text(llama, 16),
        tokenizer=llama,
        text_encoder_2=clip_text(clip, 8),
        tokenizer_2=clip,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


CASES = (
    Case(
        "hunyuanvideo",
        "hunyuanvideo",
        "HunyuanVideoPipeline",
        hunyuanvideo,
        {"height": 32, "width": 32, "num_frames": 5, "guidance_scale": 6.0, "max_sequence_length": 32},
        tolerance=1e-5,
        why="one sample's text is cut to its length instead of masked, so sums run over fewer terms",
    ),
)

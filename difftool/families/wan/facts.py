"""Wan 2.1 and 2.2 without their weights: published checkpoints, architecture numbers and the references' defaults.

Sources: `scripts/convert_wan_to_diffusers.py` of diffusers (every transformer's and VAE's config, and where the two
experts of 2.2 change over), defaults of `WanPipeline.__call__` and `WanImageToVideoPipeline.__call__`, their example
(the negative prompt of 2.1), the model cards (sizes, steps and guidance of 2.2) and Wan's own `sample_neg_prompt`,
which the cards of 2.2 use. FastWan: `FastWan2_2_TI2V_5B_Config` of FastVideo (steps), its DmdDenoisingStage (shift) and
its page on FastWan2.2 TI2V 5B FullAttn (text to video alone).
"""

from collections.abc import Mapping
from typing import Any

from difftool.facts import AXES, CheckpointFacts, Configs, FamilyFacts, PipelineFacts, config_value

DMD_CLASS = "WanDMDPipeline"
DMD_STEPS = (1000, 757, 522)
DMD_SHIFT = 8.0  # of the noise levels in training, whatever the checkpoint's scheduler says
SPARSE = (
    "trained with sparse attention, whose gate weights (to_gate_compress) diffusers' WanTransformer3DModel lacks; use "
    "FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers"
)

COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
LICENSE = "Apache-2.0"

NEGATIVE_2_1 = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall "
    "gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, "
    "poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three "
    "legs, many people in the background, walking backwards"
)
NEGATIVE_2_2 = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)

SMALL = {
    "num_layers": 30,
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "ffn_dim": 8960,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": (1, 2, 2),
    "text_dim": 4096,
    "freq_dim": 256,
}
LARGE = {**SMALL, "num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824}
LARGE_I2V = {**LARGE, "in_channels": 36}  # noise, the picture's latents, and which frames are given
LARGE_CLIP = {**LARGE_I2V, "image_dim": 1280, "added_kv_proj_dim": 5120}
MEDIUM = {
    **SMALL,
    "num_attention_heads": 24,
    "ffn_dim": 14336,
    "in_channels": 48,
    "out_channels": 48,
}
VAE = {"z_dim": 16, "scale_factor_spatial": 8, "scale_factor_temporal": 4}
VAE_5B = {"z_dim": 48, "scale_factor_spatial": 16, "scale_factor_temporal": 4}

LANDSCAPE_720 = {"height": 720, "width": 1280}
OF_2_1 = {"negative_prompt": NEGATIVE_2_1}
OF_A14B = {"negative_prompt": NEGATIVE_2_2, "num_inference_steps": 40}
OF_5B = {"height": 704, "width": 1280, "num_frames": 121, "fps": 24}


def size_multiple(configs: Configs) -> int:
    """A token is a patch of latents: 16 pixels, 32 for the VAE of TI2V-5B."""
    patch = config_value(configs, "transformer.patch_size") or (1, 2, 2)
    return int((config_value(configs, "vae.scale_factor_spatial") or 8) * patch[1])


def refuses(values: Mapping[str, Any], configs: Configs) -> Mapping[str, str]:
    """What the checkpoint would ignore, or cannot do."""
    distilled = config_value(configs, "index._class_name") == DMD_CLASS
    return _refuses_distilled(values, configs) if distilled else _refuses_frames(values, configs)


def _refuses_distilled(values: Mapping[str, Any], configs: Configs) -> Mapping[str, str]:
    """Sparse attention, and another schedule than the one that it was distilled at."""
    if not config_value(configs, "index.expand_timesteps"):
        return {"model.path": f"model.path: this checkpoint is {SPARSE}"}
    found, times = {}, ", ".join(str(step) for step in DMD_STEPS)
    if values["num_inference_steps"] != len(DMD_STEPS):
        name = "sampling.num_inference_steps"
        given = f"{name}={values['num_inference_steps']}"
        found[name] = f"{given}: this checkpoint was distilled to {len(DMD_STEPS)} steps; leave it out"
    if values["scheduler"]:
        name = "sampling.scheduler"
        found[name] = f"{name}: this checkpoint's steps are fixed, at the times {times}; leave it out"
    return found


def _refuses_frames(values: Mapping[str, Any], configs: Configs) -> Mapping[str, str]:
    """A last frame, where the checkpoint has no place for one, or cannot do without."""
    sees_pictures = config_value(configs, "transformer.image_dim")  # through an image encoder, in pairs or one by one
    takes_pairs = config_value(configs, "transformer.pos_embed_seq_len")
    first, last = values.get("image"), values.get("last_image")
    if last and not first:
        return {"sampling.last_image": "sampling.last_image: it needs a first frame; give one with --image"}
    if last and sees_pictures and not takes_pairs:
        return {
            "sampling.last_image": "sampling.last_image: this checkpoint's image encoder sees one picture; use "
            "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers or Wan-AI/Wan2.2-I2V-A14B-Diffusers"
        }
    if takes_pairs and not last:
        return {
            "sampling.last_image": "sampling.last_image: this checkpoint goes from a first frame to a last; give it"
        }
    if last and config_value(configs, "index.expand_timesteps"):
        return {"sampling.last_image": "sampling.last_image: this checkpoint keeps the first frame only; leave it out"}
    return {}


GUIDED = {"negative_prompt": "", "guidance_scale": 5.0, "guidance_scale_2": None, "boundary_ratio": None}

FACTS = FamilyFacts(
    name="wan",
    title="Wan",
    pipelines={
        "WanPipeline": PipelineFacts(
            makes="video",
            model="difftool.families.wan.model:WanConfig",
            components=COMPONENTS,
            optional=("transformer_2",),
            images=(0, 1),
            images_need="index.expand_timesteps",
            fits_image=True,
            sampling=GUIDED,
        ),
        "WanImageToVideoPipeline": PipelineFacts(
            makes="video",
            model="difftool.families.wan.model:WanImageToVideoConfig",
            components=COMPONENTS,
            optional=("transformer_2", "image_encoder", "image_processor"),
            images=(1, 1),
            last_image=True,
            fits_image=True,
            sampling=GUIDED,
        ),
        DMD_CLASS: PipelineFacts(
            makes="video",
            model="difftool.families.wan.model:WanDMDConfig",
            components=COMPONENTS,
            sampling={"num_inference_steps": len(DMD_STEPS)},
        ),
    },
    checkpoints=(
        CheckpointFacts("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "WanPipeline", SMALL, VAE, {}, OF_2_1, LICENSE),
        CheckpointFacts("Wan-AI/Wan2.1-T2V-14B-Diffusers", "WanPipeline", LARGE, VAE, {}, OF_2_1, LICENSE),
        CheckpointFacts(
            "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "WanImageToVideoPipeline", LARGE_CLIP, VAE, {}, OF_2_1, LICENSE
        ),
        CheckpointFacts(
            "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
            "WanImageToVideoPipeline",
            LARGE_CLIP,
            VAE,
            {},
            {**OF_2_1, **LANDSCAPE_720},
            LICENSE,
        ),
        CheckpointFacts(
            "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",
            "WanImageToVideoPipeline",
            {**LARGE_CLIP, "pos_embed_seq_len": 514},
            VAE,
            {},
            {**OF_2_1, **LANDSCAPE_720},
            LICENSE,
        ),
        CheckpointFacts(
            "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
            "WanPipeline",
            LARGE,
            VAE,
            {"boundary_ratio": 0.875},
            {**OF_A14B, **LANDSCAPE_720, "guidance_scale": 4.0, "guidance_scale_2": 3.0},
            LICENSE,
        ),
        CheckpointFacts(
            "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
            "WanImageToVideoPipeline",
            LARGE_I2V,
            VAE,
            {"boundary_ratio": 0.9},
            {**OF_A14B, "guidance_scale": 3.5},
            LICENSE,
        ),
        CheckpointFacts(
            "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
            "WanPipeline",
            MEDIUM,
            VAE_5B,
            {"expand_timesteps": True},
            {**OF_5B, "negative_prompt": NEGATIVE_2_2},
            LICENSE,
        ),
        CheckpointFacts(
            "FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers",
            DMD_CLASS,
            MEDIUM,
            VAE_5B,
            {"_class_name": DMD_CLASS, "expand_timesteps": True},
            OF_5B,
            LICENSE,
        ),
    ),
    refused={
        name: SPARSE
        for name in (
            "FastVideo/FastWan2.1-T2V-1.3B-Diffusers",
            "FastVideo/FastWan2.1-T2V-14B-480P-Diffusers",
            "FastVideo/FastWan2.2-TI2V-5B-Diffusers",
        )
    },
    sampling={
        "height": 480,
        "width": 832,
        "num_frames": 81,
        "fps": 16,
        "num_inference_steps": 50,
        "max_sequence_length": 512,
    },
    guidance=("guidance_scale", "guidance_scale_2"),
    needs={"guidance_scale_2": "index.boundary_ratio", "boundary_ratio": "index.boundary_ratio"},
    configured={"boundary_ratio": "index.boundary_ratio"},
    second_branch="guidance_scale",
    heads_key="num_attention_heads",
    axes=AXES,
    size_multiple=size_multiple,
    num_frames=(4, 1),
    max_sequence_length=512,
    takes_sigmas=False,
    keep_fp32={"decoding": "the reference loads the VAE in fp32"},
    refuses=refuses,
    cost="difftool.families.wan.anatomy:COST",
    video_tokens=True,
    attention=("self", "cross"),
)

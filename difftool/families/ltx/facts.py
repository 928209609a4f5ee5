"""LTX-Video without its weights: published checkpoints, their architecture numbers and the reference's defaults.

Source: `transformer/config.json` of the repository; diffusers' `convert_ltx_to_diffusers.py` (version 0.9.0) for the
VAE; defaults of `LTXPipeline.__call__`; the negative prompt is that of the model card's examples.
"""

from collections.abc import Mapping
from typing import Any

from difftool.facts import AXES, CheckpointFacts, Configs, FamilyFacts, PipelineFacts, TeaCacheFit

PIPELINE = "LTXPipeline"
DECODE = ("decode_timestep", "decode_noise_scale")


def refuses(values: Mapping[str, Any], configs: Configs) -> dict[str, str]:
    """A schedule that has no second step to be stretched to, a decoder that no seed reaches, arguments it has not."""
    vae, steps = configs["vae"], values["num_inference_steps"]
    if steps < 2:
        key = "sampling.num_inference_steps"
        return {key: f"{key}={steps}: the schedule is stretched from its first step to its last; 2 at least"}
    if any(vae.get("decoder_inject_noise", ())):
        why = "its VAE draws noise of its own while it decodes (decoder_inject_noise), which no seed repeats"
        return {"model.path": f"model.path: {why}; use a checkpoint without it"}
    if vae.get("timestep_conditioning", True):
        return {}
    names = [f"sampling.extra.{key}" for key in DECODE if key in values["extra"]]
    return {name: f"{name}: this checkpoint's VAE has no timestep_conditioning and ignores it" for name in names}


# source: TeaCache4LTX-Video of the TeaCache repository
TEACACHE = TeaCacheFit((2.14700694e01, -1.28016453e01, 2.31279151, 7.92487521e-01, 9.69274326e-03), 0.03)
FACTS = FamilyFacts(
    name="ltx",
    title="LTX-Video",
    pipelines={
        PIPELINE: PipelineFacts(
            makes="video",
            model="difftool.families.ltx.model:LTXConfig",
            components=("scheduler", "text_encoder", "tokenizer", "transformer", "vae"),
            images=(0, 1),
            fits_image=True,
            teacache=TEACACHE,
        ),
    },
    checkpoints=(
        CheckpointFacts(
            "Lightricks/LTX-Video",
            PIPELINE,
            {
                "num_layers": 28,
                "num_attention_heads": 32,
                "attention_head_dim": 64,
                "cross_attention_dim": 2048,
                "caption_channels": 4096,
                "in_channels": 128,
                "out_channels": 128,
                "patch_size": 1,
                "patch_size_t": 1,
            },
            vae={
                "latent_channels": 128,
                "patch_size": 4,
                "patch_size_t": 1,
                "spatio_temporal_scaling": [True, True, True, False],
                "timestep_conditioning": False,
            },
            license="LTX-Video Open Weights",
        ),
    ),
    sampling={
        "negative_prompt": "worst quality, inconsistent motion, blurry, jittery, distorted",
        "height": 512,
        "width": 704,
        "num_frames": 161,
        "fps": 25,
        "num_inference_steps": 50,
        "guidance_scale": 3.0,
        "max_sequence_length": 128,
    },
    extra={"guidance_rescale": float, **dict.fromkeys(DECODE, float)},
    guided_extra=("guidance_rescale",),
    guidance=("guidance_scale",),
    second_branch="guidance_scale",
    heads_key="num_attention_heads",
    axes=AXES,
    size_multiple=32,
    num_frames=(8, 1),
    max_sequence_length=512,
    refuses=refuses,
    cost="difftool.families.ltx.anatomy:COST",
    video_tokens=True,
    attention=("self", "cross"),
    masked={"cross": "always"},  # of the texts' padding
)

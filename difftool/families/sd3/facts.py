"""Stable Diffusion 3 and 3.5 without their weights: published checkpoints, architecture numbers, reference defaults.

Source: diffusers' `convert_sd3_to_diffusers.py` and the defaults of `SD3Transformer2DModel` (numbers); defaults of
`StableDiffusion3Pipeline.__call__`; steps and guidance of each checkpoint are those of its model card's example.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from difftool.facts import AXES, CheckpointFacts, Configs, FamilyFacts, PipelineFacts

PIPELINE = "StableDiffusion3Pipeline"
LICENSE = "Stability AI Community, gated"
CLIP_LAYERS = 12  # of the smaller CLIP, as of CLIP-L
SKIP = "skip_guidance_layers"
SKIP_DEFAULTS = {
    "skip_layer_guidance_scale": 2.8,
    "skip_layer_guidance_start": 0.01,
    "skip_layer_guidance_stop": 0.2,
}

SHARED = {
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "sample_size": 128,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
}
MEDIUM = {**SHARED, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
LARGE = {
    **SHARED,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "dual_attention_layers": [],
    "qk_norm": "rms_norm",
}


def skip_steps(extra: Mapping[str, Any], steps: int) -> range:
    """The steps whose guidance skips layers: those strictly between the two fractions of the run."""
    start, stop = (steps * extra.get(key, SKIP_DEFAULTS[key]) for key in list(SKIP_DEFAULTS)[1:])
    chosen = [i for i in range(steps) if start < i < stop]
    return range(chosen[0], chosen[-1] + 1) if chosen else range(0)


def refuses(values: Mapping[str, Any], configs: Configs) -> dict[str, str]:
    """What the reference would ignore or fail at with the parts this checkpoint has."""
    rules = (*_sizes(values, configs), *_texts(values, configs), *_skipped_layers(values, configs))
    return {key: f"{key}{message}" for key, message in rules}


def _sizes(values: Mapping[str, Any], configs: Configs) -> Iterator[tuple[str, str]]:
    """No side may reach over the position table."""
    if (entries := configs["transformer"].get("pos_embed_max_size")) is None:
        return
    most = 16 * entries
    for key in ("height", "width"):
        if values[key] > most:
            yield f"sampling.{key}", f"={values[key]}: this checkpoint has positions for {most} pixels a side"


def _texts(values: Mapping[str, Any], configs: Configs) -> Iterator[tuple[str, str]]:
    third, extra = configs["index"].get("text_encoder_3"), values["extra"]
    if third is not None and not third[0]:
        for key in [key for key in ("prompt_3", "negative_prompt_3") if key in extra]:
            yield f"sampling.extra.{key}", ": this checkpoint has no text_encoder_3 and ignores it"
    skipped = extra.get("clip_skip", 0)
    if not 0 <= skipped < CLIP_LAYERS:
        yield "sampling.extra.clip_skip", f"={skipped}: give 0 to {CLIP_LAYERS - 1} layers of CLIP to leave out"


def _skipped_layers(values: Mapping[str, Any], configs: Configs) -> Iterator[tuple[str, str]]:
    extra, name = values["extra"], f"sampling.extra.{SKIP}"
    if SKIP not in extra:
        for key in [key for key in SKIP_DEFAULTS if key in extra]:
            yield f"sampling.extra.{key}", f": ignored without {SKIP}; name the layers to skip"
        return
    layers, count = extra[SKIP], configs["transformer"].get("num_layers")
    if not layers or not all(isinstance(layer, int) and layer >= 0 for layer in layers):
        yield name, f"={layers}: give a list of layer numbers, such as [7, 8, 9]"
    elif count is not None and max(layers) >= count:
        yield name, f"={layers}: this checkpoint has layers 0 to {count - 1}"
    elif not skip_steps(extra, values["num_inference_steps"]):
        between = "skip_layer_guidance_start and skip_layer_guidance_stop"
        yield name, f": none of {values['num_inference_steps']} steps is between {between}"


FACTS = FamilyFacts(
    name="sd3",
    title="Stable Diffusion 3",
    pipelines={
        PIPELINE: PipelineFacts(
            makes="image",
            model="difftool.families.sd3.model:SD3Config",
            components=(
                "scheduler",
                "text_encoder",
                "text_encoder_2",
                "tokenizer",
                "tokenizer_2",
                "transformer",
                "vae",
            ),
            optional=("text_encoder_3", "tokenizer_3"),
        ),
    },
    checkpoints=(
        CheckpointFacts(
            "stabilityai/stable-diffusion-3.5-medium",
            PIPELINE,
            {**MEDIUM, "pos_embed_max_size": 384, "dual_attention_layers": list(range(13)), "qk_norm": "rms_norm"},
            sampling={"num_inference_steps": 40, "guidance_scale": 4.5},
            license=LICENSE,
        ),
        CheckpointFacts(
            "stabilityai/stable-diffusion-3.5-large",
            PIPELINE,
            LARGE,
            sampling={"guidance_scale": 3.5},
            license=LICENSE,
        ),
        CheckpointFacts(
            "stabilityai/stable-diffusion-3.5-large-turbo",
            PIPELINE,
            LARGE,
            sampling={"num_inference_steps": 4, "guidance_scale": 0.0},
            license=LICENSE,
        ),
        CheckpointFacts(
            "stabilityai/stable-diffusion-3-medium-diffusers",
            PIPELINE,
            {**MEDIUM, "pos_embed_max_size": 192, "dual_attention_layers": [], "qk_norm": None},
            license=LICENSE,
        ),
    ),
    sampling={
        "negative_prompt": "",
        "height": 1024,
        "width": 1024,
        "num_inference_steps": 28,
        "guidance_scale": 7.0,
        "max_sequence_length": 256,
    },
    extra={
        "prompt_2": str,
        "prompt_3": str,
        "negative_prompt_2": str,
        "negative_prompt_3": str,
        "clip_skip": int,
        "mu": float,
        SKIP: list,
        **dict.fromkeys(SKIP_DEFAULTS, float),
    },
    guided_extra=("negative_prompt_2", "negative_prompt_3", SKIP, *SKIP_DEFAULTS),
    guidance=("guidance_scale",),
    second_branch="guidance_scale",
    heads_key="num_attention_heads",
    third_branch=SKIP,
    axes=AXES,
    size_multiple=16,
    num_frames=None,
    max_sequence_length=512,
    refuses=refuses,
    cost="difftool.families.sd3.anatomy:COST",
)

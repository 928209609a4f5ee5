"""Qwen-Image without its weights: published checkpoints, their architecture numbers and the reference's defaults.

Source: the repositories' model cards and `transformer/config.json`, which hold the defaults of diffusers'
`QwenImageTransformer2DModel` (besides `zero_cond_t`) and `AutoencoderKLQwenImage`; the defaults and constants of the
three pipelines. Their `guidance_scale` is for distilled checkpoints, of which none is published and which the
transformer's class cannot hold; the two that edit accept a `max_sequence_length` and ignore it.
"""

import math
from collections.abc import Mapping
from typing import Any

from difftool.facts import AXES, CheckpointFacts, Configs, FamilyFacts, PipelineFacts, config_value

TRANSFORMER = {
    "num_layers": 60,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "in_channels": 64,
    "out_channels": 16,
    "patch_size": 2,
    "joint_attention_dim": 3584,
    "guidance_embeds": False,
}
VAE = {"base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]}
LICENSE = "Apache-2.0"

COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
CONDITION_IMAGE_SIZE, VAE_IMAGE_SIZE, OUTPUT_SIZE = 384 * 384, 1024 * 1024, 1024 * 1024  # areas in pixels
PICTURE_MULTIPLE = 32
MAX_RATIO = 200  # of Qwen2.5-VL's image processor
AREAS = ("condition_image_size", "vae_image_size")  # keys of `extra`


def size_multiple(configs: Configs) -> int:
    """The VAE's factor, and latents in patches of 2 x 2."""
    halvings: list[bool] = config_value(configs, "vae.temperal_downsample") or [False, True, True]
    return 2 << len(halvings)


def fit(area: int, width: int, height: int) -> tuple[int, int]:
    """Width and height of about `area` pixels in the shape of a picture. Source: diffusers' `calculate_dimensions`."""
    ratio = width / height
    across = math.sqrt(area * ratio)
    sides = (round(side / PICTURE_MULTIPLE) * PICTURE_MULTIPLE for side in (across, across / ratio))
    fitted_width, fitted_height = (max(PICTURE_MULTIPLE, side) for side in sides)
    return fitted_width, fitted_height


def fit_output(width: int, height: int) -> tuple[int, int]:
    """The size of the result, where none is given."""
    return fit(OUTPUT_SIZE, width, height)


def refuses_image(width: int, height: int) -> str:
    """What is wrong with a picture of this size."""
    if max(width, height) <= MAX_RATIO * min(width, height):
        return ""
    return f"{width}x{height}: one side is over {MAX_RATIO} times the other, which the text encoder cannot see"


def refuses(values: Mapping[str, Any], configs: Configs) -> Mapping[str, str]:
    """Areas that no picture can have."""
    least = PICTURE_MULTIPLE**2
    areas = {key: value for key, value in values["extra"].items() if key in AREAS and value < least}
    return {f"sampling.extra.{key}": f"sampling.extra.{key}={v}: pixels, at least {least}" for key, v in areas.items()}


FACTS = FamilyFacts(
    name="qwenimage",
    title="Qwen-Image",
    pipelines={
        "QwenImagePipeline": PipelineFacts(
            makes="image",
            model="difftool.families.qwenimage.model:QwenImageConfig",
            components=COMPONENTS,
            sampling={"max_sequence_length": 512},
        ),
        "QwenImageEditPipeline": PipelineFacts(
            makes="image",
            model="difftool.families.qwenimage.model:QwenImageEditConfig",
            components=(*COMPONENTS, "processor"),
            images=(1, 1),
            fits_image=fit_output,
            fits_one_side=True,
            refuses_image=refuses_image,
            extra={"vae_image_size": int},
        ),
        "QwenImageEditPlusPipeline": PipelineFacts(
            makes="image",
            model="difftool.families.qwenimage.model:QwenImageEditPlusConfig",
            components=(*COMPONENTS, "processor"),
            images=(1, 3),
            fits_image=fit_output,
            fits_one_side=True,
            fitted_image=-1,
            refuses_image=refuses_image,
            extra={"condition_image_size": int, "vae_image_size": int},
        ),
    },
    checkpoints=(
        CheckpointFacts("Qwen/Qwen-Image", "QwenImagePipeline", TRANSFORMER, VAE, license=LICENSE),
        CheckpointFacts("Qwen/Qwen-Image-2512", "QwenImagePipeline", TRANSFORMER, VAE, license=LICENSE),
        CheckpointFacts("Qwen/Qwen-Image-Edit", "QwenImageEditPipeline", TRANSFORMER, VAE, license=LICENSE),
        CheckpointFacts(
            "Qwen/Qwen-Image-Edit-2509",
            "QwenImageEditPlusPipeline",
            TRANSFORMER,
            VAE,
            sampling={"num_inference_steps": 40},
            license=LICENSE,
        ),
        CheckpointFacts(
            "Qwen/Qwen-Image-Edit-2511",
            "QwenImageEditPlusPipeline",
            {**TRANSFORMER, "zero_cond_t": True},
            VAE,
            sampling={"num_inference_steps": 40},
            license=LICENSE,
        ),
    ),
    sampling={
        "negative_prompt": " ",
        "height": 1024,
        "width": 1024,
        "num_inference_steps": 50,
        "true_cfg_scale": 4.0,
    },
    guidance=("true_cfg_scale",),
    second_branch="true_cfg_scale",
    heads_key="num_attention_heads",
    axes=AXES,
    size_multiple=size_multiple,
    num_frames=None,
    max_sequence_length=1024,
    refuses=refuses,
    cost="difftool.families.qwenimage.anatomy:COST",
)

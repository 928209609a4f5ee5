"""FLUX.1 without its weights: published checkpoints, their architecture numbers and the reference's defaults.

Source: the model cards and `transformer/config.json` of the repositories; defaults of `FluxPipeline.__call__` and
`FluxKontextPipeline.__call__`. What Kontext does with a picture: `sampling.prepare_kontext` of the authors' own code,
which takes the size of the result from the picture, and the stock pipeline, which resizes the picture the same way.
"""

from collections.abc import Mapping
from typing import Any

from difftool.facts import AXES, CheckpointFacts, Configs, FamilyFacts, PipelineFacts, TeaCacheFit

TRANSFORMER = {
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
}

COMPONENTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")
MULTIPLE = 16  # pixels of a side: 8 by the VAE, 2 by the packing
KONTEXT_SIZES = (  # (width, height) that Kontext was trained on, all of about 1024 x 1024 pixels
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
)


def whole_tokens(width: int, height: int) -> tuple[int, int]:
    """The largest valid (width, height) within a picture's."""
    return max(width - width % MULTIPLE, MULTIPLE), max(height - height % MULTIPLE, MULTIPLE)


def kontext_size(width: int, height: int) -> tuple[int, int]:
    """The trained (width, height) whose shape is nearest to that of a picture."""
    columns, rows = whole_tokens(width, height)
    return min(KONTEXT_SIZES, key=lambda size: abs(columns / rows - size[0] / size[1]))


def refuses_image(width: int, height: int) -> str:
    """What is wrong with a condition picture of this size."""
    return f"{width}x{height} is too small; both sides need {MULTIPLE} pixels" if min(width, height) < MULTIPLE else ""


def refuses(values: Mapping[str, Any], configs: Configs) -> Mapping[str, str]:
    """An argument about a picture in a request that has none."""
    key = "sampling.extra._auto_resize"
    idle = "_auto_resize" in values["extra"] and not values.get("image")
    return {key: f"{key}: it is about the input picture, and there is none; give one with --image"} if idle else {}


# source: TeaCache4FLUX of the TeaCache repository, for FLUX.1-dev
TEACACHE = TeaCacheFit((4.98651651e02, -2.83781631e02, 5.58554382e01, -3.82021401, 2.64230861e-01), 0.25)
FACTS = FamilyFacts(
    name="flux1",
    title="FLUX.1",
    pipelines={
        "FluxPipeline": PipelineFacts(
            makes="image",
            model="difftool.families.flux1.model:Flux1Config",
            components=COMPONENTS,
            teacache=TEACACHE,  # and not of Kontext: it was fitted without a picture
        ),
        "FluxKontextPipeline": PipelineFacts(
            makes="image",
            model="difftool.families.flux1.model:KontextConfig",
            components=COMPONENTS,
            images=(0, 1),
            fits_image=kontext_size,
            refuses_image=refuses_image,
            extra={"_auto_resize": bool},
        ),
    },
    checkpoints=(
        CheckpointFacts(
            "black-forest-labs/FLUX.1-dev",
            "FluxPipeline",
            {**TRANSFORMER, "guidance_embeds": True},
            license="FLUX.1-dev non-commercial, gated",
        ),
        CheckpointFacts(
            "black-forest-labs/FLUX.1-schnell",
            "FluxPipeline",
            {**TRANSFORMER, "guidance_embeds": False},
            sampling={"num_inference_steps": 4, "max_sequence_length": 256},
            license="Apache-2.0",
        ),
        CheckpointFacts(
            "black-forest-labs/FLUX.1-Kontext-dev",
            "FluxKontextPipeline",
            {**TRANSFORMER, "guidance_embeds": True},
            sampling={"guidance_scale": 2.5},
            license="FLUX.1-dev non-commercial, gated",
        ),
    ),
    sampling={
        "negative_prompt": None,
        "height": 1024,
        "width": 1024,
        "num_inference_steps": 28,
        "guidance_scale": 3.5,
        "true_cfg_scale": 1.0,
        "max_sequence_length": 512,
    },
    extra={"prompt_2": str, "negative_prompt_2": str},
    guided_extra=("negative_prompt_2",),
    guidance=("guidance_scale", "true_cfg_scale"),
    needs={"guidance_scale": "transformer.guidance_embeds"},
    second_branch="true_cfg_scale",
    heads_key="num_attention_heads",
    axes=AXES,
    size_multiple=MULTIPLE,
    num_frames=None,
    max_sequence_length=512,
    refuses=refuses,
    cost="difftool.families.flux1.anatomy:COST",
)

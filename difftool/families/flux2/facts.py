"""FLUX.2 without its weights: published checkpoints, their architecture numbers and the references' defaults.

Source: `scripts/convert_flux2_to_diffusers.py` of diffusers (transformers), the class defaults of `AutoencoderKLFlux2`
(VAE), `model_index.json` of the klein repositories (`is_distilled`) and their cards (four steps where distilled);
`Flux2Pipeline.__call__` and `Flux2KleinPipeline.__call__` (defaults, what becomes of a picture; klein guides away from
the empty prompt), `Flux2ImageProcessor.check_image_input` (a picture's limits). The authors' documentation names the
most pictures: ten of the family, four of klein.
"""

import math
from typing import Any

from difftool.facts import AXES, CheckpointFacts, FamilyFacts, PipelineFacts

TRANSFORMER = {"attention_head_dim": 128, "in_channels": 128, "patch_size": 1, "mlp_ratio": 3.0}
VAE = {"latent_channels": 32, "block_out_channels": [128, 256, 512, 512]}
COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
DEV = {"num_layers": 8, "num_single_layers": 48, "num_attention_heads": 48, "joint_attention_dim": 15360}
KLEIN_4B = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
KLEIN_9B = {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288}
NON_COMMERCIAL = "FLUX non-commercial"

MULTIPLE = 16  # pixels of a side: 8 by the VAE, 2 by the patches
MAX_AREA = 1024 * 1024  # pixels of a condition picture; a larger one is made smaller
MIN_SIDE, MAX_RATIO = 64, 8


def picture_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) a condition picture is brought to, and the result's where the recipe names none."""
    if width * height > MAX_AREA:
        scale = math.sqrt(MAX_AREA / (width * height))
        width, height = int(width * scale), int(height * scale)
    return width - width % MULTIPLE, height - height % MULTIPLE


def refuses_image(width: int, height: int) -> str:
    """What is wrong with a condition picture of this size."""
    if min(width, height) < MIN_SIDE:
        return f"{width}x{height} is too small; both sides need {MIN_SIDE} pixels"
    if max(width / height, height / width) > MAX_RATIO:
        return f"{width}x{height} is too long; one side may be {MAX_RATIO} times the other"
    return ""


def klein(name: str, transformer: dict[str, Any], license: str, *, distilled: bool) -> CheckpointFacts:
    return CheckpointFacts(
        f"black-forest-labs/FLUX.2-{name}",
        "Flux2KleinPipeline",
        {**TRANSFORMER, **transformer, "guidance_embeds": False},
        vae=VAE,
        index={"is_distilled": distilled},
        sampling={"num_inference_steps": 4} if distilled else {},
        license=license,
    )


FACTS = FamilyFacts(
    name="flux2",
    title="FLUX.2",
    pipelines={
        "Flux2Pipeline": PipelineFacts(
            makes="image",
            model="difftool.families.flux2.model:Flux2Config",
            components=COMPONENTS,
            images=(0, 10),
            fits_image=picture_size,
            fits_one_side=True,
            refuses_image=refuses_image,
            tokenizers=("tokenizer",),
        ),
        "Flux2KleinPipeline": PipelineFacts(
            makes="image",
            model="difftool.families.flux2.model:Flux2KleinConfig",
            components=COMPONENTS,
            images=(0, 4),
            fits_image=picture_size,
            fits_one_side=True,
            refuses_image=refuses_image,
            sampling={"negative_prompt": ""},
        ),
    },
    checkpoints=(
        CheckpointFacts(
            "black-forest-labs/FLUX.2-dev",
            "Flux2Pipeline",
            {**TRANSFORMER, **DEV, "guidance_embeds": True},
            vae=VAE,
            license="FLUX.2-dev non-commercial, gated",
        ),
        klein("klein-4B", KLEIN_4B, "Apache-2.0", distilled=True),
        klein("klein-9B", KLEIN_9B, NON_COMMERCIAL, distilled=True),
        klein("klein-base-4B", KLEIN_4B, "Apache-2.0", distilled=False),
        klein("klein-base-9B", KLEIN_9B, NON_COMMERCIAL, distilled=False),
    ),
    sampling={
        "height": 1024,
        "width": 1024,
        "num_inference_steps": 50,
        "guidance_scale": 4.0,
        "max_sequence_length": 512,
    },
    guidance=("guidance_scale",),
    needs={"guidance_scale": "not index.is_distilled", "negative_prompt": "not index.is_distilled"},
    second_branch="guidance_scale",  # of klein; dev knows no negative prompt
    heads_key="num_attention_heads",
    axes=AXES,
    size_multiple=MULTIPLE,
    num_frames=None,
    max_sequence_length=512,
    cost="difftool.families.flux2.anatomy:COST",
)

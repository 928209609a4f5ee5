"""What FLUX.2's denoiser costs. Source: diffusers' `Flux2Transformer2DModel`; a test compares every number with it."""

import math

from difftool.anatomy import (
    Anatomy,
    Attention,
    Block,
    Cost,
    Linear,
    Request,
    embedder,
    feed_forward,
    self_attention,
    vectors,
)
from difftool.facts import Configs
from difftool.families.flux2.facts import MAX_AREA, MULTIPLE
from difftool.families.parts import MISTRAL_SMALL, QWEN3_4B, QWEN3_8B, VAE_FLUX2

BOTH = ("text", "image")
LONGEST = 512
ENCODERS = {15360: MISTRAL_SMALL, 7680: QWEN3_4B, 12288: QWEN3_8B}  # by three times their width


def picture_tokens(request: Request) -> int:
    """Those of all condition pictures, each at its own size or the largest that is allowed."""
    tokens = 0
    for width, height in request.pictures:
        if width * height > MAX_AREA:
            scale = math.sqrt(MAX_AREA / (width * height))
            width, height = int(width * scale), int(height * scale)
        tokens += (width // MULTIPLE) * (height // MULTIPLE)
    return tokens


def anatomy(configs: Configs, request: Request) -> Anatomy:
    """One forward."""
    config, values = configs["transformer"], request.values
    heads, head = config["num_attention_heads"], config["attention_head_dim"]
    d, channels = heads * head, config["in_channels"]
    inner, times = int(d * config.get("mlp_ratio", 3.0)), config.get("timestep_guidance_channels", 256)
    image = (values["height"] // MULTIPLE) * (values["width"] // MULTIPLE) + picture_tokens(request)
    attention = (Attention(BOTH, BOTH, d, across=True),)
    double = [
        linear
        for name in BOTH
        for linear in (*self_attention(d, (name,), bias=False), *feed_forward(d, inner, (name,), gates=2, bias=False))
    ]
    single = (
        Linear(d, 3 * d + 2 * inner, BOTH, "column", bias=False),
        Linear(d + inner, d, BOTH, "row", bias=False),
    )
    outside = [
        Linear(channels, d, ("image",), bias=False),
        Linear(config["joint_attention_dim"], d, ("text",), bias=False),
        *embedder(times, d, bias=False),
        *(embedder(times, d, bias=False) if config.get("guidance_embeds", True) else ()),
        Linear(d, 6 * d, bias=False, count=2),  # modulations, shared by the blocks
        Linear(d, 3 * d, bias=False),
        Linear(d, 2 * d, bias=False),
        Linear(d, channels, ("image",), bias=False),
    ]
    return Anatomy(
        tokens={"image": image, "text": request.text(values.get("max_sequence_length") or LONGEST)},
        dealt=BOTH,
        gathered=BOTH,
        width=d,
        blocks=(
            Block("", 1, tuple(outside), dealt=False),
            Block("transformer_blocks", config["num_layers"], tuple(double), attention, scales=vectors(head) * 4),
            Block(
                "single_transformer_blocks", config["num_single_layers"], single, attention, scales=vectors(head) * 2
            ),
        ),
        prediction=image * channels,
    )


def others(configs: Configs) -> dict[str, int]:
    """Parameters of its other components."""
    return {"text_encoder": ENCODERS[configs["transformer"]["joint_attention_dim"]], "vae": VAE_FLUX2}


COST = Cost(anatomy, others)

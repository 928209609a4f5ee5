"""What Stable Diffusion 3's denoiser costs. Source: diffusers' `SD3Transformer2DModel`; a test compares every number
with it.
"""

from collections.abc import Mapping
from typing import Any

from difftool.anatomy import (
    Anatomy,
    Attention,
    Block,
    Cost,
    Linear,
    Request,
    embedder,
    feed_forward,
    modulation,
    self_attention,
    vectors,
)
from difftool.facts import Configs
from difftool.families.parts import CLIP_BIG_G_PROJECTED, CLIP_L_PROJECTED, T5_XXL, VAE_16_CHANNELS
from difftool.families.sd3.facts import SKIP, skip_steps

IMAGE, TEXT, BOTH = ("image",), ("text",), ("image", "text")
TIME, OF_CLIP, LONGEST = 256, 77, 256


def block(config: Mapping[str, Any], count: int, *, dual: bool = False, last: bool = False) -> Block:
    """Blocks with the second attention of 3.5 medium, or without; the last one leaves the text."""
    head = config["attention_head_dim"]
    d = config["num_attention_heads"] * head
    normed = config.get("qk_norm") is not None
    linears = [modulation(d, (9 if dual else 6) * d), *self_attention(d, IMAGE), *feed_forward(d, 4 * d, IMAGE)]
    attentions = [Attention(BOTH, BOTH, d, across=True)]
    if last:
        linears += [modulation(d, 2 * d), Linear(d, d, TEXT, "column", count=3)]
    else:
        linears += [modulation(d, 6 * d), *self_attention(d, TEXT), *feed_forward(d, 4 * d, TEXT)]
    if dual:
        linears += self_attention(d, IMAGE)
        attentions.append(Attention(IMAGE, IMAGE, d, across=True))
    scales = vectors(head) * (6 if dual else 4) if normed else ()
    return Block("transformer_blocks", count, tuple(linears), tuple(attentions), scales)


def blocks(config: Mapping[str, Any], skipped: set[int]) -> tuple[Block, ...]:
    """Those of the layers that are not skipped, alike ones together."""
    layers, dual = config["num_layers"], set(config.get("dual_attention_layers", ()))
    run = [layer for layer in range(layers) if layer not in skipped]
    kinds = [(layer in dual, layer == layers - 1) for layer in run]
    return tuple(block(config, kinds.count(kind), dual=kind[0], last=kind[1]) for kind in dict.fromkeys(kinds))


def anatomy(configs: Configs, request: Request) -> Anatomy:
    """One forward."""
    config, values = configs["transformer"], request.values
    d, patch = config["num_attention_heads"] * config["attention_head_dim"], config["patch_size"]
    side = 2 ** (len(configs["vae"].get("block_out_channels", range(4))) - 1)
    rows, columns = values["height"] // side, values["width"] // side
    inputs, outputs = config["in_channels"], config.get("out_channels") or config["in_channels"]
    outside = (
        Linear(inputs * patch**2, d, IMAGE),
        Linear(config["joint_attention_dim"], config["caption_projection_dim"], TEXT),
        *embedder(TIME, d),
        *embedder(config["pooled_projection_dim"], d),
        Linear(d, 2 * d),
        Linear(d, outputs * patch**2, IMAGE),
    )
    skipped = set(values["extra"][SKIP]) if request.branch == "skipping" else set[int]()
    return Anatomy(
        tokens={
            "image": (rows // patch) * (columns // patch),
            "text": request.text(OF_CLIP + (values.get("max_sequence_length") or LONGEST)),
        },
        dealt=BOTH,
        gathered=IMAGE,
        width=d,
        blocks=(Block("", 1, outside, dealt=False), *blocks(config, skipped)),
        prediction=outputs * rows * columns,
    )


def further(values: Mapping[str, Any]) -> Mapping[str, range]:
    """The branch that skips layers, in the steps that guide by it."""
    return {"skipping": skip_steps(values["extra"], values["num_inference_steps"])} if SKIP in values["extra"] else {}


def others(configs: Configs) -> dict[str, int]:
    """Parameters of its other components."""
    return {
        "text_encoder": CLIP_L_PROJECTED,
        "text_encoder_2": CLIP_BIG_G_PROJECTED,
        "text_encoder_3": T5_XXL,
        "vae": VAE_16_CHANNELS,
    }


COST = Cost(anatomy, others, joint=True, further=further)

"""What Wan's denoiser costs, each expert alike. Source: diffusers' `WanTransformer3DModel`; a test compares every
number with it.
"""

import math
from collections.abc import Mapping
from typing import Any

from difftool.anatomy import (
    TIMES,
    Anatomy,
    Attention,
    Block,
    Cost,
    Linear,
    Request,
    Shapes,
    embedder,
    feed_forward,
    latent_grid,
    self_attention,
    vectors,
)
from difftool.facts import Configs
from difftool.families.parts import CLIP_H_VISION, UMT5_XXL, VAE_WAN, VAE_WAN22

IMAGE, TEXT, SEEN = ("image",), ("text",), ("picture",)
LONGEST, OF_CLIP = 512, 257  # tokens: the second of the class token and 16 x 16 patches of CLIP ViT-H/14


def outside(config: Mapping[str, Any], d: int) -> Block:
    """What comes before the blocks and after them. Tables, norms and the embedding of time stay in fp32."""
    volume, seen = math.prod(config["patch_size"]), config.get("image_dim")
    scales: Shapes = ()
    fp32_scales: Shapes = ((1, 2 * d),)
    linears = [
        Linear(config["in_channels"] * volume, d, IMAGE),
        Linear(config["freq_dim"], d, TIMES, fp32=True),
        Linear(d, d, TIMES, fp32=True),
        Linear(d, 6 * d, TIMES),
        *embedder(config["text_dim"], d, TEXT),
        Linear(d, (config.get("out_channels") or config["in_channels"]) * volume, IMAGE),
    ]
    if seen is not None:
        linears += [Linear(seen, seen, SEEN), Linear(seen, d, SEEN)]
        fp32_scales += vectors(seen, seen, d, d)
        if positions := config.get("pos_embed_seq_len"):
            scales = ((1, positions * seen),)
    return Block("", 1, tuple(linears), scales=scales, fp32_scales=fp32_scales, dealt=False)


def block(config: Mapping[str, Any], d: int) -> Block:
    """Self-attention, attention to text and, in some, to a picture, and a feed-forward."""
    added = config.get("added_kv_proj_dim")
    linears = [
        *self_attention(d, IMAGE),
        Linear(d, d, IMAGE, "column"),
        Linear(d, d, TEXT, "column", count=2),
        Linear(d, d, IMAGE, "row"),
        *feed_forward(d, config["ffn_dim"], IMAGE),
    ]
    attentions = [Attention(IMAGE, IMAGE, d, across=True), Attention(IMAGE, TEXT, d)]
    norms = [IMAGE, IMAGE, IMAGE, TEXT]
    if added is not None:
        linears.append(Linear(added, d, SEEN, "column", count=2))
        attentions.append(Attention(IMAGE, SEEN, d))
        norms.append(SEEN)
    return Block(
        "blocks",
        config["num_layers"],
        tuple(linears),
        tuple(attentions),
        fp32_scales=((1, 6 * d), *(vectors(d, d) if config.get("cross_attn_norm", True) else ())),
        norms=tuple(norms),
        width=d,
    )


def anatomy(configs: Configs, request: Request) -> Anatomy:
    """One forward."""
    config, values, vae = configs["transformer"], request.values, configs["vae"]
    d, patch = config["num_attention_heads"] * config["attention_head_dim"], config["patch_size"]
    grid = latent_grid(values, vae.get("scale_factor_spatial", 8), vae.get("scale_factor_temporal", 4))
    image = math.prod(size // by for size, by in zip(grid, patch, strict=True))
    pictures = (1 if values.get("last_image") is None else 2) if config.get("image_dim") else 0
    return Anatomy(
        tokens={
            "image": image,
            "text": request.text(values.get("max_sequence_length") or LONGEST),
            "picture": pictures * OF_CLIP,
            "times": image if configs["index"].get("expand_timesteps") else 1,
        },
        dealt=IMAGE,
        gathered=IMAGE,
        width=d,
        blocks=(outside(config, d), block(config, d)),
        prediction=(config.get("out_channels") or config["in_channels"]) * math.prod(grid),
        gathered_fp32=True,  # the last norm takes its input in fp32
    )


def others(configs: Configs) -> dict[str, int]:
    """Parameters of its other components."""
    vae = VAE_WAN22 if configs["vae"]["z_dim"] == 48 else VAE_WAN
    seeing = {"image_encoder": CLIP_H_VISION} if configs["transformer"].get("image_dim") else {}
    return {"text_encoder": UMT5_XXL, "vae": vae, **seeing}


COST = Cost(anatomy, others)

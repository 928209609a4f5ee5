"""What HunyuanVideo's denoiser costs. Source: diffusers' `HunyuanVideoTransformer3DModel`; a test compares every number
with it.
"""

from difftool.anatomy import (
    Anatomy,
    Attention,
    Block,
    Cost,
    Linear,
    Request,
    embedder,
    feed_forward,
    latent_grid,
    modulation,
    self_attention,
    vectors,
)
from difftool.facts import Configs
from difftool.families.parts import CLIP_L, LLAMA_8B, VAE_HUNYUANVIDEO

BOTH, TEXT = ("image", "text"), ("text",)
TIME, LONGEST = 256, 256


def refiner(d: int, inner: int, count: int) -> Block:
    """The text's own blocks, which every rank runs whole."""
    whole = [Linear(d, d, TEXT, count=4), Linear(d, inner, TEXT), Linear(inner, d, TEXT), Linear(d, 2 * d)]
    name = "context_embedder.token_refiner.refiner_blocks"
    return Block(name, count, tuple(whole), (Attention(TEXT, TEXT, d),), scales=vectors(d) * 4, dealt=False)


def anatomy(configs: Configs, request: Request) -> Anatomy:
    """One forward. Without the pictures of checkpoints that take them."""
    config, values, vae = configs["transformer"], request.values, configs["vae"]
    heads, head = config["num_attention_heads"], config["attention_head_dim"]
    d, patch, patch_t = heads * head, config["patch_size"], config["patch_size_t"]
    inner, volume = int(d * config.get("mlp_ratio", 4.0)), patch_t * patch**2
    side, length = vae.get("spatial_compression_ratio", 8), vae.get("temporal_compression_ratio", 4)
    frames, rows, columns = latent_grid(values, side, length)
    image = (frames // patch_t) * (rows // patch) * (columns // patch)
    attention = (Attention(BOTH, BOTH, d, across=True),)
    double = [
        linear
        for name in BOTH
        for linear in (modulation(d, 6 * d), *self_attention(d, (name,)), *feed_forward(d, inner, (name,)))
    ]
    single = (
        modulation(d, 3 * d),
        Linear(d, d, BOTH, "column", count=3),
        Linear(d, inner, BOTH, "column"),
        Linear(d + inner, d, BOTH, "row"),
    )
    outside = [
        Linear(config["in_channels"] * volume, d, ("image",)),
        *embedder(TIME, d),
        *embedder(config["text_embed_dim"], d),  # of the mean of the text, for its refiner
        Linear(config["text_embed_dim"], d, TEXT),
        *embedder(TIME, d),
        *embedder(config["pooled_projection_dim"], d),
        *(embedder(TIME, d) if config.get("guidance_embeds", True) else ()),
        Linear(d, 2 * d),
        Linear(d, config["out_channels"] * volume, ("image",)),
    ]
    return Anatomy(
        tokens={"image": image, "text": request.text(values.get("max_sequence_length") or LONGEST)},
        dealt=BOTH,
        gathered=("image",),
        width=d,
        blocks=(
            Block("", 1, tuple(outside), dealt=False),
            refiner(d, inner, config["num_refiner_layers"]),
            Block("transformer_blocks", config["num_layers"], tuple(double), attention, scales=vectors(head) * 4),
            Block(
                "single_transformer_blocks", config["num_single_layers"], single, attention, scales=vectors(head) * 2
            ),
        ),
        prediction=config["out_channels"] * frames * rows * columns,
    )


def others(configs: Configs) -> dict[str, int]:
    """Parameters of its other components."""
    return {"text_encoder": LLAMA_8B, "text_encoder_2": CLIP_L, "vae": VAE_HUNYUANVIDEO}


COST = Cost(anatomy, others, exact=False)

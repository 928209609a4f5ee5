"""What LTX-Video's denoiser costs. Source: diffusers' `LTXVideoTransformer3DModel`; a test compares every number with
it.
"""

from difftool.anatomy import (
    TIMES,
    Anatomy,
    Attention,
    Block,
    Cost,
    Linear,
    Request,
    embedder,
    feed_forward,
    latent_grid,
    self_attention,
)
from difftool.facts import Configs
from difftool.families.parts import T5_XXL, VAE_LTX

IMAGE, TEXT = ("image",), ("text",)
TIME, LONGEST = 256, 128


def anatomy(configs: Configs, request: Request) -> Anatomy:
    """One forward."""
    config, values, vae = configs["transformer"], request.values, configs["vae"]
    d = config["num_attention_heads"] * config["attention_head_dim"]
    patch, patch_t, context = config["patch_size"], config["patch_size_t"], config["cross_attention_dim"]
    halvings = 2 ** sum(vae.get("spatio_temporal_scaling", (True, True, True, False)))
    grid = latent_grid(values, vae.get("patch_size", 4) * halvings, vae.get("patch_size_t", 1) * halvings)
    image = (grid[0] // patch_t) * (grid[1] // patch) * (grid[2] // patch)
    block = (
        *self_attention(d, IMAGE),
        Linear(d, d, IMAGE, "column"),
        Linear(context, d, TEXT, "column", count=2),
        Linear(d, d, IMAGE, "row"),
        *feed_forward(d, 4 * d, IMAGE),
    )
    outside = (
        Linear(config["in_channels"], d, IMAGE),
        Linear(TIME, d, TIMES),
        Linear(d, d, TIMES),
        Linear(d, 6 * d, TIMES),
        *embedder(config["caption_channels"], d, TEXT),
        Linear(d, config["out_channels"], IMAGE),
    )
    return Anatomy(
        # with a first frame, every token has a time of its own
        tokens={
            "image": image,
            "text": request.text(values.get("max_sequence_length") or LONGEST),
            "times": image if request.pictures else 1,
        },
        dealt=IMAGE,
        gathered=IMAGE,
        width=d,
        blocks=(
            Block("", 1, outside, scales=((2, d),), dealt=False),
            Block(
                "transformer_blocks",
                config["num_layers"],
                block,
                (Attention(IMAGE, IMAGE, d, across=True), Attention(IMAGE, TEXT, d)),
                scales=((6, d),),
                norms=(IMAGE, IMAGE, IMAGE, TEXT),
                width=d,
            ),
        ),
        prediction=image * config["out_channels"],
        prediction_fp32=True,
    )


def others(configs: Configs) -> dict[str, int]:
    """Parameters of its other components."""
    return {"text_encoder": T5_XXL, "vae": VAE_LTX}


COST = Cost(anatomy, others, joint=True)

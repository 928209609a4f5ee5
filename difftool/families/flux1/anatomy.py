"""What FLUX.1's denoiser costs. Source: diffusers' `FluxTransformer2DModel`; a test compares every number with it."""

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
from difftool.families.flux1.facts import kontext_size, whole_tokens
from difftool.families.parts import CLIP_L, T5_XXL, VAE_16_CHANNELS

BOTH = ("text", "image")
TIME, LONGEST = 256, 512


def picture_tokens(request: Request, side: int) -> int:
    """Those of Kontext's picture, at the size that it is brought to."""
    resize = request.values["extra"].get("_auto_resize", True)
    sizes = [kontext_size(*size) if resize else whole_tokens(*size) for size in request.pictures]
    return sum((width // side) * (height // side) for width, height in sizes)


def anatomy(configs: Configs, request: Request) -> Anatomy:
    """One forward."""
    config, values = configs["transformer"], request.values
    heads, head = config["num_attention_heads"], config["attention_head_dim"]
    d, channels = heads * head, config["in_channels"]
    side = 2 ** len(configs["vae"].get("block_out_channels", range(4)))  # pixels of a token: the VAE's, twice
    image = (values["height"] // side) * (values["width"] // side) + picture_tokens(request, side)
    attention = (Attention(BOTH, BOTH, d, across=True),)
    stream = [
        linear
        for name in BOTH
        for linear in (modulation(d, 6 * d), *self_attention(d, (name,)), *feed_forward(d, 4 * d, (name,)))
    ]
    single = (
        modulation(d, 3 * d),
        Linear(d, d, BOTH, "column", count=3),
        Linear(d, 4 * d, BOTH, "column"),
        Linear(5 * d, d, BOTH, "row"),
    )
    outside = [
        Linear(channels, d, ("image",)),
        Linear(config["joint_attention_dim"], d, ("text",)),
        *embedder(TIME, d),
        *embedder(config["pooled_projection_dim"], d),
        *(embedder(TIME, d) if config["guidance_embeds"] else ()),
        Linear(d, 2 * d),
        Linear(d, channels, ("image",)),
    ]
    return Anatomy(
        tokens={"image": image, "text": request.text(values.get("max_sequence_length") or LONGEST)},
        dealt=BOTH,
        gathered=("image",),
        width=d,
        blocks=(
            Block("", 1, tuple(outside), dealt=False),
            Block("transformer_blocks", config["num_layers"], tuple(stream), attention, scales=vectors(head) * 4),
            Block(
                "single_transformer_blocks", config["num_single_layers"], single, attention, scales=vectors(head) * 2
            ),
        ),
        prediction=image * channels,
    )


def others(configs: Configs) -> dict[str, int]:
    """Parameters of its other components."""
    return {"text_encoder": CLIP_L, "text_encoder_2": T5_XXL, "vae": VAE_16_CHANNELS}


COST = Cost(anatomy, others)

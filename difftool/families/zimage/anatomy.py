"""What Z-Image's denoiser costs. Source: diffusers' `ZImageTransformer2DModel`; a test compares every number with
it.
"""

from difftool.anatomy import (
    Anatomy,
    Attention,
    Block,
    Cost,
    Linear,
    Request,
    Streams,
    feed_forward,
    self_attention,
    vectors,
)
from difftool.facts import Configs
from difftool.families.parts import QWEN3_4B, VAE_16_CHANNELS

IMAGE, TEXT, TOKENS = ("image",), ("text",), ("tokens",)
TIME, INNER, ADALN, LONGEST = 256, 1024, 256, 512
MULTIPLE = 32  # text and picture are each filled up to one


def filled(tokens: int) -> int:
    """The length that so many tokens have in the denoiser."""
    return -(-tokens // MULTIPLE) * MULTIPLE


def block(name: str, count: int, d: int, head: int, streams: Streams, *, modulated: bool = True) -> Block:
    """A block of the layers or of a refiner, whose tokens every sequence rank has."""
    inner, across = int(d / 3 * 8), streams == TOKENS
    linears = (
        *self_attention(d, streams, bias=False),
        *feed_forward(d, inner, streams, bias=False),
        Linear(d, inner, streams, "column", bias=False),
        *((Linear(min(d, ADALN), 4 * d),) if modulated else ()),
    )
    attention = Attention(streams, streams, d, across)
    return Block(name, count, linears, (attention,), vectors(d, d, d, d, head, head), dealt=across)


def anatomy(configs: Configs, request: Request) -> Anatomy:
    """One forward."""
    config, values = configs["transformer"], request.values
    d, patch, patch_t = config["dim"], config["all_patch_size"][0], config["all_f_patch_size"][0]
    head, refiners, channels = d // config["n_heads"], config["n_refiner_layers"], config["in_channels"]
    side = 2 ** (len(configs["vae"].get("block_out_channels", range(4))) - 1)
    rows, columns = values["height"] // side, values["width"] // side
    longest = values.get("max_sequence_length") or LONGEST
    texts = {filled(text) for text in request.texts or (longest,)}
    image, volume = filled((rows // patch) * (columns // patch)), patch_t * patch**2
    outside = (
        Linear(channels * volume, d, IMAGE),
        Linear(config["cap_feat_dim"], d, TEXT),
        Linear(TIME, INNER),
        Linear(INNER, min(d, ADALN)),
        Linear(min(d, ADALN), d),
        Linear(d, channels * volume, TOKENS),
    )
    return Anatomy(
        tokens={"image": image, "text": max(texts), "tokens": image + max(texts)},
        dealt=TOKENS,
        gathered=TOKENS,
        width=d,
        blocks=(
            Block("", 1, outside, scales=(*vectors(config["cap_feat_dim"]), (1, d), (1, d)), dealt=False),
            block("noise_refiner", refiners, d, head, IMAGE),
            block("context_refiner", refiners, d, head, TEXT, modulated=False),
            block("layers", config["n_layers"], d, head, TOKENS),
        ),
        prediction=channels * rows * columns,
        prediction_fp32=True,
        mask_bytes=int(len(texts) > 1),
    )


def others(configs: Configs) -> dict[str, int]:
    """Parameters of its other components."""
    return {"text_encoder": QWEN3_4B, "vae": VAE_16_CHANNELS}


COST = Cost(anatomy, others, joint=True, exact=False)

"""What Qwen-Image's denoiser costs. Source: diffusers' `QwenImageTransformer2DModel`; a test compares every number with
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
    feed_forward,
    modulation,
    self_attention,
    vectors,
)
from difftool.facts import Configs
from difftool.families.parts import QWEN25_VL_7B, VAE_WAN
from difftool.families.qwenimage.facts import CONDITION_IMAGE_SIZE, VAE_IMAGE_SIZE, fit, size_multiple

BOTH = ("text", "image")
TIME, LONGEST = 256, 1024  # the pipelines' own limit of a text
SEEN = 28  # pixels of a side of what Qwen2.5-VL makes one token of a picture


def text_tokens(configs: Configs, request: Request) -> int:
    """The longest text, and the pictures as the language model sees them."""
    values, extra = request.values, request.values["extra"]
    area = extra.get("condition_image_size", CONDITION_IMAGE_SIZE)
    if configs["index"].get("_class_name") == "QwenImageEditPipeline":
        area = extra.get("vae_image_size", VAE_IMAGE_SIZE)
    sizes = [fit(area, *size) for size in request.pictures]
    seen = sum(round(width / SEEN) * round(height / SEEN) for width, height in sizes)
    return (values.get("max_sequence_length") or LONGEST) + seen


def anatomy(configs: Configs, request: Request) -> Anatomy:
    """One forward."""
    config, values = configs["transformer"], request.values
    heads, head = config["num_attention_heads"], config["attention_head_dim"]
    d, side = heads * head, size_multiple(configs)
    made = (values["height"] // side) * (values["width"] // side)
    area = values["extra"].get("vae_image_size", VAE_IMAGE_SIZE)
    pictures = [fit(area, *size) for size in request.pictures]
    image = made + sum((width // side) * (height // side) for width, height in pictures)
    out = config["out_channels"] * config["patch_size"] ** 2
    block = [modulation(d, 6 * d, TIMES), modulation(d, 6 * d)]
    block += [linear for name in BOTH for linear in (*self_attention(d, (name,)), *feed_forward(d, 4 * d, (name,)))]
    outside = (
        Linear(config["in_channels"], d, ("image",)),
        Linear(config["joint_attention_dim"], d, ("text",)),
        Linear(TIME, d, TIMES),
        Linear(d, d, TIMES),
        Linear(d, 2 * d),
        Linear(d, out, ("image",)),
    )
    return Anatomy(
        # with zero_cond_t, the pictures' tokens have the time 0
        tokens={
            "image": image,
            "text": request.text(text_tokens(configs, request)),
            "times": 2 if config.get("zero_cond_t") else 1,
        },
        dealt=BOTH,
        gathered=("image",),
        width=d,
        blocks=(
            Block("", 1, outside, scales=vectors(config["joint_attention_dim"]), dealt=False),
            Block(
                "transformer_blocks",
                config["num_layers"],
                tuple(block),
                (Attention(BOTH, BOTH, d, across=True),),
                scales=vectors(head) * 4,
            ),
        ),
        prediction=made * out,
    )


def others(configs: Configs) -> dict[str, int]:
    """Parameters of its other components."""
    return {"text_encoder": QWEN25_VL_7B, "vae": VAE_WAN}


COST = Cost(anatomy, others, exact=False)

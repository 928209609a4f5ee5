"""Tiny Z-Image checkpoints."""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from families.cases.case import Case
from families.cases.parts import picture_vae, qwen3_text, qwen_tokenizer

from difftool.pipeline.batch import Batch

CHAT = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def zimage(*, dynamic_shift: bool) -> ZImagePipeline:
    """Z-Image with 2 layers and 1 of each refiner, width 32, f8 latents of 4 channels."""
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = CHAT
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=24,
        axes_dims=[2, 2, 4],
        axes_lens=[256, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)  # zeros as built: an ignored one would not be seen
    vae = picture_vae(scaling_factor=0.36, shift_factor=0.12)
    return ZImagePipeline(
        transformer=transformer.eval(),
        vae=vae,
        text_encoder=qwen3_text(tokenizer, 24),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic_shift),
    )


def own_lists(batch: Batch) -> dict[str, Any]:
    """The stock pipeline writes its chat template into the lists it is given."""
    return {
        key: value and list(value)
        for key, value in (("prompt", batch.prompt), ("negative_prompt", batch.negative_prompt))
    }


GUIDED = {"guidance_scale": 3.0, "negative_prompt": ["grey"]}
SIZE = {"height": 64, "width": 64, "max_sequence_length": 64}

CASES = (
    Case(
        "zimage",
        "zimage",
        "ZImagePipeline",
        lambda: zimage(dynamic_shift=False),
        {**SIZE, **GUIDED},
        {
            "normalized": {**GUIDED, "extra": {"cfg_normalization": True}},
            "truncated": {**GUIDED, "extra": {"cfg_truncation": 0.3}},
            "truncated to nothing": {**GUIDED, "extra": {"cfg_truncation": -1.0}},
            "normalized, two prompts": {
                "guidance_scale": 3.0,
                "prompt": ["a red circle", "two cats"],
                "negative_prompt": ["grey", "a much longer text than the others"],
                "seeds": [1, 2],
                "extra": {"cfg_normalization": True, "cfg_truncation": 0.2},
            },
        },
        arguments=own_lists,
    ),
    Case(
        "zimage-turbo",
        "zimage",
        "ZImagePipeline",
        lambda: zimage(dynamic_shift=True),
        {**SIZE, "guidance_scale": 0.0},
        arguments=own_lists,
    ),
)

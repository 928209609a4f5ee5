"""Tiny Qwen-Image checkpoints."""

import functools
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from families.cases.case import Case, picture
from families.cases.parts import qwen_tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from difftool.components.processors import load_processor, without_video

AREA, CONDITION_AREA = 96 * 96, 64 * 64  # of the tiny pictures; the stock pipelines' own are a hundred times larger
SCHEDULE = {  # of the published checkpoints, over fewer tokens
    "use_dynamic_shifting": True,
    "base_image_seq_len": 4,
    "max_image_seq_len": 64,
    "max_shift": 0.9,
    "shift_terminal": 0.02,
}


def text_encoder(tokenizer, width: int) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL with 2 layers of language and 2 of vision."""
    ids = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"} | {
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_heads": 2,
            "out_hidden_size": width,
            "fullatt_block_indexes": [1],
        },
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()},
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def modules(*, zero_cond_t: bool = False) -> dict[str, object]:
    """2 blocks of width 32, f8 latents of 4 channels."""
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        axes_dims_rope=(2, 2, 4),
        zero_cond_t=zero_cond_t,
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[-0.7, 0.1, 0.9, -0.1],
        latents_std=[2.8, 1.4, 2.3, 1.2],
    )
    return {
        "transformer": transformer.eval(),
        "vae": vae.eval(),
        "text_encoder": text_encoder(tokenizer, 32),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(**SCHEDULE),
    }


def with_processor() -> dict[str, object]:
    """The processor is transformers' own but for the part that reads videos, which needs torchvision."""
    images = Qwen2VLImageProcessorPil()
    return {"processor": without_video(Qwen2VLProcessor)(image_processor=images, tokenizer=qwen_tokenizer())}


def given(folder: Path) -> dict[str, object]:
    return {"processor": load_processor(Qwen2VLProcessor, folder / "processor")}


def with_small_pictures(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """The stock pipeline, whose module resizes every picture to areas of its own, for the time of a call to ours."""
    kind = type(pipeline)
    module = sys.modules[kind.__module__]
    if kind is QwenImageEditPlusPipeline:
        small = {"CONDITION_IMAGE_SIZE": CONDITION_AREA, "VAE_IMAGE_SIZE": AREA}
    else:
        dimensions = module.calculate_dimensions
        small = {"calculate_dimensions": lambda area, ratio: dimensions(AREA, ratio)}

    class Small(kind):
        @functools.wraps(kind.__call__)
        def __call__(self, *args, **kwargs):
            with patch.multiple(module, **small):
                return super().__call__(*args, **kwargs)

    return Small(**pipeline.components)


REQUEST = {"height": 64, "width": 64, "max_sequence_length": 256, "negative_prompt": [" "], "true_cfg_scale": 4.0}
EDIT = {key: value for key, value in REQUEST.items() if key != "max_sequence_length"} | {"image": (picture(40, 30),)}
SMALL = {"extra": {"condition_image_size": CONDITION_AREA, "vae_image_size": AREA}}

CASES = (
    Case(
        "qwenimage",
        "qwenimage",
        "QwenImagePipeline",
        lambda: QwenImagePipeline(**modules()),
        REQUEST,
        {"few tokens": {"max_sequence_length": 48, "negative_prompt": ["blurry and grey"]}},
        fewest_steps=2,
    ),
    Case(
        "qwenimage-edit",
        "qwenimage",
        "QwenImageEditPipeline",
        lambda: QwenImageEditPipeline(**modules(), **with_processor()),
        {**EDIT, "extra": {"vae_image_size": AREA}},
        {"a flat picture": {"image": (picture(90, 20),)}},
        batches=False,
        reference=with_small_pictures,
        given=given,
        fewest_steps=2,
    ),
    Case(
        "qwenimage-edit-plus",
        "qwenimage",
        "QwenImageEditPlusPipeline",
        lambda: QwenImageEditPlusPipeline(**modules(), **with_processor()),
        {**EDIT, **SMALL},
        {"three pictures": {"image": (picture(40, 30), picture(30, 64, 1), picture(20, 20, 2))}},
        batches=False,
        reference=with_small_pictures,
        given=given,
        fewest_steps=2,
    ),
    Case(
        "qwenimage-edit-2511",
        "qwenimage",
        "QwenImageEditPlusPipeline",
        lambda: QwenImageEditPlusPipeline(**modules(zero_cond_t=True), **with_processor()),
        {**EDIT, **SMALL, "image": (picture(40, 30), picture(30, 64, 1))},
        batches=False,
        reference=with_small_pictures,
        given=given,
        fewest_steps=2,
    ),
)

"""A processor is read without the part that needs torchvision, and works the same where torchvision is installed."""

import json

import pytest
from families.cases.case import picture
from families.cases.parts import qwen_tokenizer
from transformers import Qwen2VLProcessor

from difftool.components.processors import load_processor

TEXT = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>make it blue<|im_end|>"


@pytest.fixture
def folder(tmp_path):
    """The layout of the published checkpoints: a preprocessor_config.json that names the torchvision class."""
    qwen_tokenizer().save_pretrained(tmp_path)
    config = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen2VLProcessor",
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": 56 * 56,
        "max_pixels": 120 * 120,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    return tmp_path


def test_it_reads_text_and_pictures_with_pil(folder):
    processor = load_processor(Qwen2VLProcessor, folder)
    made = processor(text=[TEXT], images=[picture(84, 56).image], padding=True, return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, 4, 6]]
    assert made["pixel_values"].shape == (24, 3 * 2 * 14 * 14)
    pad = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert (made["input_ids"] == pad).sum() == 6  # a token for each 2 x 2 patches
    assert type(processor.image_processor).__name__ == "Qwen2VLImageProcessorPil"


def test_the_configured_limits_hold(folder):
    processor = load_processor(Qwen2VLProcessor, folder)
    made = processor(text=[TEXT], images=[picture(600, 600).image], padding=True, return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, 8, 8]]


def test_it_keeps_its_class_and_name(folder, tmp_path):
    processor = load_processor(Qwen2VLProcessor, folder)
    assert isinstance(processor, Qwen2VLProcessor)
    assert (type(processor).__module__, type(processor).__name__) == (
        Qwen2VLProcessor.__module__,
        Qwen2VLProcessor.__name__,
    )
    processor.save_pretrained(tmp_path / "again")
    again = load_processor(Qwen2VLProcessor, tmp_path / "again")
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()

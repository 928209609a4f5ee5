"""Models that score outputs, of random weights: LPIPS in its only size, and a small CLIP."""

from pathlib import Path

import torch
from families.cases.parts import clip_config, clip_tokenizer
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

CHANNELS = (64, 192, 384, 256, 256)
KERNELS = {"net.slice1.0": 11, "net.slice2.3": 5, "net.slice3.6": 3, "net.slice4.8": 3, "net.slice5.10": 3}
SIDE = 32  # of the pictures that CLIP reads
TOKENS = 16


def write_lpips(file: Path, *, linear: str = "lin{}", **changes: torch.Tensor | None) -> Path:
    """The state of the package's LPIPS with AlexNet; `linear` names its layers, None leaves a tensor out."""
    torch.manual_seed(0)
    tensors = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    for number, (name, kernel) in enumerate(KERNELS.items()):
        width, before = CHANNELS[number], CHANNELS[number - 1] if number else 3
        tensors[f"{name}.weight"] = torch.randn(width, before, kernel, kernel) / (before * kernel * kernel) ** 0.5
        tensors[f"{name}.bias"] = torch.randn(width) / 10
        tensors[f"{linear.format(number)}.model.1.weight"] = torch.rand(1, width, 1, 1)
    merged = {**tensors, **changes}
    save_file({name: tensor for name, tensor in merged.items() if tensor is not None}, file)
    return file


def write_clip(folder: Path) -> Path:
    """A folder as `save_pretrained` leaves it."""
    tokenizer = clip_tokenizer(TOKENS)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**size, image_size=SIDE, patch_size=8, projection_dim=16)
    text = clip_config(tokenizer, 16)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    edges = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    CLIPImageProcessorPil(**edges).save_pretrained(folder)
    return folder

"""Every way we know a LoRA file to be damaged or of another model, made from a sound one, with what is said of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from components.damaged import hostile, shards
from safetensors.torch import load_file, save_file

LAYERS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k")
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class LoraDamage:
    """`make(path, tensors)` writes the LoRA of these sound tensors in a damaged form."""

    name: str
    make: Callable[[Path, dict[str, torch.Tensor]], None]
    words: str


def sound_lora(folder: Path) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 for two layers of the checkpoint's transformer."""
    every = {name: tensor for shard in shards(folder) for name, tensor in load_file(shard).items()}
    made = {}
    for layer in LAYERS:
        rows, columns = every[f"{layer}.weight"].shape
        made |= {f"transformer.{layer}{DOWN}": torch.ones(2, columns), f"transformer.{layer}{UP}": torch.ones(rows, 2)}
    return made


def each(change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> Callable[..., None]:
    return lambda path, tensors: save_file(dict(change(*pair) for pair in tensors.items()), path)


def wider(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """As for a model of twice the width."""
    return name, tensor.repeat(1, 2) if name.endswith(DOWN) else tensor.repeat(2, 1)


LORA_DAMAGES = (
    LoraDamage(
        "LoRA of two ranks",
        each(lambda name, tensor: (name, tensor.repeat(1, 2) if name.endswith(UP) else tensor)),
        "the two tensors of transformer_blocks.0.attn.to_[kq] are of different ranks",
    ),
    LoraDamage("LoRA of another base", each(wider), "was made for another model: transformer_blocks.0.attn.to_[kq] is"),
    LoraDamage(
        "LoRA without a match",
        each(lambda name, tensor: (name.replace("blocks.0", "blocks.99"), tensor)),
        "changes no layer of transformer",
    ),
    LoraDamage(
        "LoRA with half a match",
        each(lambda name, tensor: (name.replace("attn.to_k", "attn.to_z"), tensor)),
        r"2 of 4 keys \(50%\) have a layer in transformer",
    ),
    LoraDamage(
        "LoRA of half a pair",
        lambda path, tensors: save_file({k: v for k, v in tensors.items() if not k.endswith(UP)}, path),
        "has no complete pair for transformer_blocks.0.attn.to_[kq]",
    ),
    LoraDamage("LoRA of numbers", each(lambda name, tensor: (name, tensor[0, 0])), "of different ranks, or of none"),
    LoraDamage(
        "LoRA of many alphas",
        lambda path, tensors: save_file({**tensors, f"transformer.{LAYERS[0]}.alpha": torch.ones(2)}, path),
        r"the alpha of transformer_blocks.0.attn.to_q is no number but has shape \[2\]",
    ),
    LoraDamage(
        "LoRA with NaN",
        each(lambda name, tensor: (name, tensor * torch.nan if name.endswith(UP) else tensor)),
        "holds numbers that are not finite",
    ),
    LoraDamage(
        "LoRA that is a pickle", lambda path, tensors: path.write_bytes(hostile(path.parent)), "is a pickle named"
    ),
    LoraDamage(
        "LoRA cut short",
        lambda path, tensors: (save_file(tensors, path), path.write_bytes(path.read_bytes()[:-8])),
        "is truncated",
    ),
)

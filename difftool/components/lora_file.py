"""One LoRA file as it is on the disk: its tensors by layer, and the alpha that scales them.

Shapes: R the rank; `down` is [R, in, ...], `up` [out, R, ...], `diff` the layer's weight, `bias` and `diff_b` [out].
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from difftool.components.check import check_safetensors
from difftool.components.lora_keys import Key, read_keys, split_module
from difftool.errors import WeightsError

PEFT_CONFIG = "adapter_config.json"  # beside the file
DIFFUSERS_CONFIG = "lora_adapter_metadata"  # in its header; keys have the module's prefix


@dataclass(frozen=True)
class LayerTensors:
    """What a file holds for one layer. `keys` are all of its keys but alpha's; `rank` and `scale` of a pair."""

    module: str
    layer: str
    keys: tuple[str, ...]
    parts: Mapping[str, Tensor]
    alpha: float | None
    scale: float

    @property
    def rank(self) -> int | None:
        """R, of a pair."""
        return self.parts["down"].shape[0] if "down" in self.parts else None


@dataclass(frozen=True)
class LoraFile:
    """`unknown` are keys of no format that is known; `stamp` is the file's size and time when it was read."""

    path: Path
    sha256: str
    layers: tuple[LayerTensors, ...]
    unknown: tuple[str, ...]
    stamp: tuple[int, int]

    def is_still(self, path: Path) -> bool:
        """Whether `path` names this file, and it has not been written since."""
        return path == self.path and path.is_file() and _stamp(path) == self.stamp


@dataclass(frozen=True)
class Settings:
    """What a trainer's own config says: alphas by pattern of a layer's name, and how they scale."""

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    root: bool = False  # rank-stabilised: alpha / sqrt(rank)

    def alpha_of(self, layer: str) -> float | None:
        """Source: PEFT's `get_pattern_key`: a pattern fits the end of a layer's name."""
        found = (alpha for pattern, alpha in self.alphas.items() if re.match(rf"(.*\.)?({pattern})$", layer))
        return next(found, self.alpha)


def read_lora(path: Path) -> LoraFile:
    """Checks the file and reads it to the CPU. Raises WeightsError: a damaged file, another kind, half a pair."""
    check_safetensors(path)
    stamp = _stamp(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}", hint="download the file again") from None
    known, unknown = read_keys(tensors, path.name)
    for name, tensor in tensors.items():
        if not tensor.float().isfinite().all():  # float: not every dtype can say
            raise WeightsError(f"{path.name}: {name} holds numbers that are not finite", hint="take another copy of it")
    settings = {module: read_settings(path, header, module) for module in {key.module for key in known}}
    layers = [_layer(path, keys, tensors, settings[keys[0].module]) for keys in _by_layer(known)]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return LoraFile(path, digest, tuple(layers), tuple(unknown), stamp)


def outline_lora(path: Path) -> LoraFile:
    """What the file's header tells: layers with tensors on the meta device and no alpha; no digest. Raises WeightsError
    for what is wrong with the file, its names or its shapes.
    """
    shapes = {name: tensor.shape for name, tensor in check_safetensors(path).items()}
    known, unknown = read_keys(list(shapes), path.name)
    layers = []
    for keys in _by_layer(known):
        _check_layer(path, keys, shapes)
        texts = {key.part: key.text for key in keys if key.part != "alpha"}
        parts = {part: torch.empty(shapes[text], device="meta") for part, text in texts.items()}
        layers.append(LayerTensors(keys[0].module, keys[0].layer, tuple(texts.values()), parts, None, 1.0))
    return LoraFile(path, "", tuple(layers), tuple(unknown), _stamp(path))


def _by_layer(known: Sequence[Key]) -> list[list[Key]]:
    grouped: dict[tuple[str, str], list[Key]] = {}
    for key in known:
        grouped.setdefault((key.module, key.layer), []).append(key)
    return list(grouped.values())


def _check_layer(path: Path, keys: Sequence[Key], shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises WeightsError for half a pair, for two halves of different ranks, and for an alpha that is no number."""
    found = {key.part: shapes[key.text] for key in keys}
    first = keys[0]
    if len(found) != len(keys) or ("down" in found) != ("up" in found) or ("bias" in found and "up" not in found):
        raise WeightsError(
            f"{path.name} has no complete pair for {first.layer}: it holds {', '.join(sorted(k.text for k in keys))}",
            hint="the file may be damaged, or hold several adapters; download it again",
        )
    if math.prod(found.get("alpha", ())) != 1:
        raise WeightsError(
            f"{path.name}: the alpha of {first.layer} is no number but has shape {list(found['alpha'])}",
            hint="the file is damaged: take another copy of it",
        )
    if "up" in found and (min(len(found["down"]), len(found["up"])) < 2 or found["down"][0] != found["up"][1]):
        pair = f"{list(found['down'])} and {list(found['up'])}"
        raise WeightsError(
            f"{path.name}: the two tensors of {first.layer} are of different ranks, or of none: {pair}",
            hint="the file is damaged: take another copy of it",
        )


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _layer(path: Path, keys: Sequence[Key], tensors: Mapping[str, Tensor], settings: Settings) -> LayerTensors:
    _check_layer(path, keys, {key.text: tensors[key.text].shape for key in keys})
    parts = {key.part: tensors[key.text] for key in keys}
    first = keys[0]
    alpha = float(parts.pop("alpha")) if "alpha" in parts else settings.alpha_of(first.layer)
    rank = parts["down"].shape[0] if "down" in parts else 1
    divisor = math.sqrt(rank) if settings.root else rank
    scale = 1.0 if alpha is None else alpha / divisor
    texts = tuple(key.text for key in keys if key.part != "alpha")
    return LayerTensors(first.module, first.layer, texts, parts, alpha, scale)


def read_settings(path: Path, header: Mapping[str, str], module: str) -> Settings:
    """The trainer's config: diffusers' in the file, else PEFT's beside it. A file without has its alphas as tensors,
    or means alpha = rank. Raises WeightsError for one that cannot be read, or asks for what is not a plain LoRA.
    """
    config = _config(path, header, module)
    for flag, kind in (("use_dora", "DoRA"), ("fan_in_fan_out", "a LoRA of transposed layers")):
        if config.get(flag):
            raise WeightsError(f"{path.name} is not a plain LoRA but {kind} (its config sets {flag}): refused")
    try:
        alphas = {str(pattern): float(alpha) for pattern, alpha in (config.get("alpha_pattern") or {}).items()}
        alpha = config.get("lora_alpha")
        for pattern in alphas:
            re.compile(pattern)
        return Settings(None if alpha is None else float(alpha), alphas, bool(config.get("use_rslora")))
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise WeightsError(f"{path.name}: the config of the adapter cannot be understood: {error}") from None


def _config(path: Path, header: Mapping[str, str], module: str) -> Mapping[str, Any]:
    beside = path.with_name(PEFT_CONFIG)
    if DIFFUSERS_CONFIG not in header and not beside.is_file():
        return {}
    try:
        content = json.loads(header[DIFFUSERS_CONFIG] if DIFFUSERS_CONFIG in header else beside.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path.name}: the config of the adapter cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path.name}: the config of the adapter is no mapping")
    if DIFFUSERS_CONFIG not in header:
        return content
    named = {split_module(key): value for key, value in content.items()}
    return {key: value for (owner, key), value in named.items() if owner == module}

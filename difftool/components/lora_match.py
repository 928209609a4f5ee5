"""Which parameters of a module a LoRA file changes, and by how much."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from difftool.components.lora_file import LayerTensors, LoraFile
from difftool.components.lora_keys import DENOISER, Names, Place, choose_names, original_names, own_names
from difftool.errors import WeightsError

Parameters: TypeAlias = Mapping[str, Tensor]
SHOWN = 6  # keys in a message or in the record


@dataclass(frozen=True)
class Change:
    """What one file adds to the output rows `start` to `stop` of one parameter."""

    parameter: str
    start: int
    stop: int
    tensors: LayerTensors
    part: str  # "pair", or a part of the file's that is added as it is
    first: int  # the row of the file's tensors that goes to `start`

    def delta(self, like: Tensor, device: torch.device) -> Tensor:
        """fp32, in the shape of the parameter's rows: alpha / rank * up @ down, or the difference."""
        rows = slice(self.first, self.first + self.stop - self.start)
        parts = self.tensors.parts
        if self.part != "pair":
            scale = self.tensors.scale if self.part == "bias" else 1.0
            return parts[self.part][rows].to(device, torch.float32) * scale
        up = parts["up"].flatten(1)[rows].to(device, torch.float32)
        down = parts["down"].flatten(1).to(device, torch.float32)
        return (up @ down).mul_(self.tensors.scale).view(self.stop - self.start, *like.shape[1:])


@dataclass(frozen=True)
class Match:
    """What a file changes in one module. `keys` were found a place, `missing` were not; `repeated` say once more, for a
    layer of several in one, what others say of each, and are left out.
    """

    changes: tuple[Change, ...]
    layers: int
    keys: tuple[str, ...]
    missing: tuple[str, ...]
    repeated: tuple[str, ...]


def match(file: LoraFile, parameters: Parameters, name: str, original: Mapping[str, tuple[str, ...]]) -> Match:
    """Finds every layer of the file among a module's parameters. `name` is the text encoder's, or DENOISER; `original`
    the family's table of names. Raises WeightsError for tensors of another shape than the layer's.
    """
    layers = [key.removesuffix(".weight") for key in parameters if key.endswith(".weight")]
    mine = [layer for layer in file.layers if layer.module == name]
    own = own_names(layers)
    names = choose_names([layer.layer for layer in mine], own, original_names(layers, original)) if original else own
    repeated = _repeated(mine, names, own)
    changes, found, missing = [], [], list(file.unknown) if name == DENOISER else []
    for layer in (layer for layer in mine if layer not in repeated):
        made = _changes(file, layer, names.get(layer.layer, ()), parameters)
        changes += made
        placed = {part for change in made for part in ({"down", "up"} if change.part == "pair" else {change.part})}
        found += [key for key, part in zip(layer.keys, layer.parts, strict=True) if part in placed]
        missing += [key for key, part in zip(layer.keys, layer.parts, strict=True) if part not in placed]
    return Match(
        changes=tuple(changes),
        layers=len({change.parameter.rpartition(".")[0] for change in changes}),
        keys=tuple(found),
        missing=tuple(missing),
        repeated=tuple(key for layer in repeated for key in layer.keys),
    )


def check_share(found: Match, file: str, module: str, min_match: float) -> None:
    """Raises WeightsError where nothing of the file fits the module, or less than `min_match`."""
    total = len(found.keys) + len(found.missing)
    if not found.keys:
        keys = f"its keys are such as {shown(found.missing)}" if total else "it has no keys for it"
        raise WeightsError(
            f"{file} changes no layer of {module}: {keys}", hint="it was made for another model; nothing was merged"
        )
    if len(found.keys) / total < min_match:
        raise WeightsError(
            f"{file}: {len(found.keys)} of {total} keys ({len(found.keys) / total:.0%}) have a layer in {module}, and "
            f"min_match is {min_match:.0%}; without one: {shown(found.missing)}",
            hint="it was made for another model; a lower min_match merges what fits",
        )


def shown(keys: Sequence[str]) -> str:
    """The first few keys."""
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more


def _repeated(layers: Sequence[LayerTensors], names: Names, own: Names) -> list[LayerTensors]:
    """Layers by another name than their own, that the file also holds by their own names.

    Z-Image files of some trainers hold `qkv` beside `to_q`, `to_k` and `to_v`: the same change, written twice.
    """
    known = [layer for layer in layers if layer.layer in names]
    others = [layer for layer in known if own.get(layer.layer) != names[layer.layer]]
    written = {place.layer for layer in known if layer not in others for place in names[layer.layer]}
    return [layer for layer in others if all(place.layer in written for place in names[layer.layer])]


def _changes(file: LoraFile, layer: LayerTensors, places: Sequence[Place], parameters: Parameters) -> list[Change]:
    """Where the tensors of one layer of the file go; nothing for a part that the module's layer does not have."""
    made = []
    for part, parameter in (("pair", "weight"), ("diff", "weight"), ("bias", "bias"), ("diff_b", "bias")):
        tensor = layer.parts.get("up" if part == "pair" else part)
        targets = [parameters.get(f"{place.layer}.{parameter}") for place in places]
        if tensor is None or not targets or any(target is None for target in targets):
            continue
        first = 0
        for place, target in zip(places, targets, strict=True):
            rows = target.shape[0] // place.count
            start = place.index * rows
            made.append(Change(f"{place.layer}.{parameter}", start, start + rows, layer, part, first))
            first += rows
        _check_shape(file, layer, part, targets[0], first)
    return made


def _check_shape(file: LoraFile, layer: LayerTensors, part: str, target: Tensor, rows: int) -> None:
    if part == "pair":
        found = (layer.parts["up"].shape[0], layer.parts["down"][0].numel())
        wanted = (rows, target[0].numel())
    else:
        found, wanted = tuple(layer.parts[part].shape), (rows, *target.shape[1:])
    if found != wanted:
        raise WeightsError(
            f"{file.path.name} was made for another model: {layer.layer} is {list(found)} in it and {list(wanted)} "
            "in the model",
            hint="take a LoRA of this very model; a family's sizes differ",
        )

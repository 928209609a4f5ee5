"""Weights of eight bits in the blocks of a model: half of bf16's bytes, faster products, another picture.

What is outside the blocks is small, and its errors go into every block: it stays as it is.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from difftool.acceleration.blocks import block_chains
from difftool.acceleration.low_precision import QuantizedLinear
from difftool.components.loaded import Components
from difftool.errors import PlanError, RecipeError
from difftool.facts import Applied, Refused
from difftool.parallel.tensor import GatheredLinear, RowLinear

ROLES = ("text_encoding", "denoising")
PROBE = 16  # inputs and outputs of the layer that is tried
KINDS = (nn.Linear, RowLinear, GatheredLinear)  # others are not all called as these are


@dataclass(frozen=True)
class Quantization:
    """The options of a recipe's `quantization`, with its defaults."""

    name: str = "none"
    activations: str = "dynamic"
    granularity: str = "per_row"
    keep_first_blocks: int = 0
    keep_last_blocks: int = 0
    exclude: Sequence[str] = ()

    @property
    def dynamic(self) -> bool:
        return self.activations == "dynamic"

    def of(self, layer: nn.Linear) -> nn.Module:
        return QuantizedLinear(layer, self.name, granularity=self.granularity, dynamic=self.dynamic)


def resolve(
    spec: Mapping[str, str | Mapping[str, Any]],
    roles: Mapping[str, Sequence[str]],
    dtypes: Mapping[str, torch.dtype],
    device: torch.device,
) -> Applied | Refused:
    """`spec` by stage role -> Applied with the options of those that have any. `dtypes` by module of a role.

    What the device cannot compute is refused with torch's own reason: a small product is tried.
    """
    found = {role: options for role, asked in spec.items() if (options := _options(asked)).name != "none"}
    for role, options in found.items():
        for dtype in {dtypes[name] for name in roles[role]}:
            if reason := _fault(options, dtype, device):
                return Refused(f"stages.{role}.quantization={options.name}: {reason}")
    return Applied(dict(found))


def apply(
    components: Components,
    roles: Mapping[str, Sequence[str]],
    applied: Applied,
    *,
    dtypes: Mapping[str, torch.dtype],
    lists: Sequence[str] = (),
) -> dict[str, Applied]:
    """Quantizes the linear layers of the blocks of these roles' modules. `lists` are the denoisers' lists of blocks.

    What was done, by component, under the name of the transform; nothing where nothing was asked. Raises RecipeError
    for an `exclude` that names no layer, and PlanError where nothing is left to quantize.
    """
    done: dict[str, object] = {}
    for role, options in applied.detail.items():
        assert isinstance(options, Quantization), options
        named = {name: getattr(components, name, None) for name in roles[role]}
        modules = {name: module for name, module in named.items() if isinstance(module, nn.Module)}
        _check_patterns(options, role, modules)
        made = {
            name: _quantize(module, block_chains(module, lists if role == "denoising" else ()), options, dtypes[name])
            for name, module in modules.items()
        }
        if not any(record["layers"] for record in made.values()):
            kept = sum((Counter(record["kept"]) for record in made.values()), Counter())
            why = ", ".join(f"{count} {reason}" for reason, count in kept.items()) or "there are no linear layers"
            key = f"stages.{role}.quantization"
            raise PlanError(f"{key}={options.name} leaves nothing to quantize: {why}", hint=f"use {key}=none")
        done |= made
    return {"quantization": Applied(done)} if done else {}


def _options(asked: str | Mapping[str, Any]) -> Quantization:
    return Quantization(asked) if isinstance(asked, str) else Quantization(**asked)


def _fault(options: Quantization, dtype: torch.dtype, device: torch.device) -> str:
    """Why the device cannot compute it; "" where it can."""
    try:
        layer = nn.Linear(PROBE, PROBE, device=device, dtype=dtype).requires_grad_(False)
        options.of(layer)(torch.ones(1, PROBE, device=device, dtype=dtype)).sum().item()
    except (RuntimeError, TypeError, ValueError) as error:  # as torch refuses dtypes, kernels and old devices
        offer = "use int8, or activations: none" if options.dynamic else "use none"
        return f"{device.type} cannot compute it: {str(error).splitlines()[0]}; {offer}"
    return ""


def _check_patterns(options: Quantization, role: str, modules: Mapping[str, nn.Module]) -> None:
    paths = [path for m in modules.values() for path, layer in m.named_modules() if isinstance(layer, nn.Linear)]
    for pattern in options.exclude:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise RecipeError(
                f"stages.{role}.quantization.exclude: {pattern!r} names no linear layer of {', '.join(modules)}",
                hint=f"* stands for anything; layers are called like {paths[len(paths) // 2]}" if paths else None,
            )


def _quantize(
    model: nn.Module,
    chains: Sequence[Mapping[str, nn.Module]],
    options: Quantization,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Replaces layers in place; how many, what stays and why, and the model's bytes before and after."""
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    holders = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    kept, before = Counter[str](), _bytes(model)
    in_blocks = [path for chain in chains for path in chain]
    ends = [path for chain in chains for path in _ends(list(chain), options)]
    quantized = 0
    for path, layer in layers.items():
        if reason := _stays(path, layer, options, in_blocks, ends, dtype, shared=holders[id(layer.weight)] > 1):
            kept[reason] += 1
        else:
            model.set_submodule(path, options.of(layer).train(model.training))
            quantized += 1
    done = {"layers": quantized, "kept": dict(kept), "bytes": {"before": before, "after": _bytes(model)}}
    return {**asdict(options), "exclude": list(options.exclude), **done}


def _stays(
    path: str,
    layer: nn.Linear,
    options: Quantization,
    in_blocks: Sequence[str],
    ends: Sequence[str],
    dtype: torch.dtype,
    *,
    shared: bool,
) -> str:
    """Why a layer stays as it is; "" for one to quantize."""
    if not _below(path, in_blocks):
        return "outside the blocks"
    if type(layer) not in KINDS:
        return f"of the class {type(layer).__name__}"
    if _below(path, ends):
        return "in the first or last blocks"
    if any(fnmatchcase(path, pattern) for pattern in options.exclude):
        return "excluded"
    if shared:
        return "with weights that other modules have too"
    if layer.weight.dtype != dtype:
        return f"kept in {str(layer.weight.dtype).removeprefix('torch.')} by the model"
    return ""


def _ends(chain: Sequence[str], options: Quantization) -> Sequence[str]:
    return [*chain[: options.keep_first_blocks], *chain[max(0, len(chain) - options.keep_last_blocks) :]]


def _below(path: str, blocks: Sequence[str]) -> bool:
    return any(path == block or path.startswith(f"{block}.") for block in blocks)


def _bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())

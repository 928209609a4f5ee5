"""Tensor parallelism: each rank has some rows or columns of a model's layers, and reads no others.

A layer cut by columns makes some of the features, those of its heads; the one cut by rows that follows takes them and
makes a part of every feature, and the parts are summed: one all-reduce for a pair of layers. Source: Shoeybi et al.
2019, "Megatron-LM". A model is cut while it is on the meta device, before its weights are read.

Legend: B samples, S tokens, I and O the features of a rank.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from difftool.components.read import Cut
from difftool.errors import PlanError
from difftool.parallel.mesh import Line
from difftool.parallel.plans import Heads, Packed, Parts, TensorPlan

T = TypeVar("T")
L = TypeVar("L", bound=nn.Linear)
Ranges: TypeAlias = tuple[tuple[int, int], ...]


class RowLinear(nn.Linear):
    """[B, S, I] of each rank -> [B, S, O] of all features, the same on every rank."""

    line: Line

    def forward(self, input: Tensor) -> Tensor:
        made = self.line.all_reduce(functional.linear(input, self.weight))
        return made if self.bias is None else made + self.bias  # once, not once for each rank


class GatheredLinear(nn.Linear):
    """[B, …, all inputs] -> [B, …, all outputs], of which each rank makes some."""

    line: Line
    sizes: Sequence[int]

    def forward(self, input: Tensor) -> Tensor:
        made = super().forward(input)
        return torch.cat(self.line.gather(made, made.ndim - 1, self.sizes), -1)


class LineRMSNorm(nn.Module):
    """The root mean square of the features of all ranks; fp32 inside, as torch's."""

    def __init__(self, norm: nn.RMSNorm, width: int, line: Line):
        super().__init__()
        (self.whole_width,) = norm.normalized_shape
        assert norm.eps is not None and norm.elementwise_affine, norm
        self.eps, self.line = norm.eps, line
        self.weight = nn.Parameter(torch.empty(width, device="meta"), requires_grad=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, S, I] -> [B, S, I]."""
        wide = hidden_states.float()
        squares = self.line.all_reduce(wide.square().sum(-1, keepdim=True))
        return (wide * torch.rsqrt(squares / self.whole_width + self.eps) * self.weight).type_as(hidden_states)


class LineEmbedding(nn.Embedding):
    """Entries `first` and following of an embedding; the others are on other ranks."""

    first: int
    line: Line

    def forward(self, input: Tensor) -> Tensor:
        own = input - self.first
        elsewhere = (own < 0) | (own >= self.num_embeddings)
        found = functional.embedding(own.masked_fill(elsewhere, 0), self.weight)
        return self.line.all_reduce(found.masked_fill(elsewhere[..., None], 0))


@dataclass(frozen=True)
class TensorShares:
    """What of each tensor this rank keeps, and the model's parameters as they were, on the meta device."""

    cuts: Mapping[str, Cut]
    whole: Mapping[str, Tensor]

    def place(self, name: str, tensor: Tensor) -> Tensor:
        return tensor


def cut_model(model: nn.Module, plan: TensorPlan, line: Line, *, key: str, name: str) -> TensorShares:
    """Makes the layers of an empty model those of this rank. `key` is the recipe's, `name` the component's.

    Raises PlanError for fewer heads than ranks.
    """
    whole, modules = dict(model.named_parameters()), dict(model.named_modules())
    counts = {path: attrgetter(heads.count)(model.get_submodule(path)) for path, heads in _matching(model, plan.heads)}
    fewest = min(counts, key=lambda path: counts[path])
    if counts[fewest] < line.degree:
        raise PlanError(
            f"{key}={line.degree}: {name} deals out {counts[fewest]} attention heads in {fewest}",
            hint=f"use {key}={counts[fewest]} or less",
        )
    cutter = _Cutter(model, modules, line, counts, {})
    for path, parts in _matching(model, _parts_of(plan.columns)):
        cutter.cut_columns(path, parts)
    for path, parts in _matching(model, _parts_of(plan.rows)):
        cutter.cut_rows(path, parts)
    for path, _ in _matching(model, dict.fromkeys(plan.gathered)):
        cutter.cut_gathered(path)
    for path, _ in _matching(model, dict.fromkeys(plan.norms)):
        cutter.cut_norm(path)
    for path, _ in _matching(model, dict.fromkeys(plan.vocabulary)):
        cutter.cut_vocabulary(path)
    for path, heads in _matching(model, plan.heads):
        cutter.share_heads_out(path, heads)
    for path, dims in _matching(model, plan.inputs):
        model.get_submodule(path).register_forward_pre_hook(_InputCut(line, dims), with_kwargs=True)
    return TensorShares(cutter.cuts, whole)


@dataclass(frozen=True)
class _Cutter:
    """Cuts one model, whose layers were `modules` by path. `heads` counts those of each attention module."""

    model: nn.Module
    modules: Mapping[str, nn.Module]
    line: Line
    heads: Mapping[str, int]
    cuts: dict[str, Cut]

    def cut_columns(self, path: str, parts: Parts) -> None:
        layer = self.model.get_submodule(path)
        if isinstance(layer, nn.Embedding):  # of a bias for every head
            ranges = self._ranges(path, [layer.embedding_dim])
            self._set(path, nn.Embedding(layer.num_embeddings, _length(ranges), device="meta"))
            self.cuts[f"{path}.weight"] = Cut(1, ranges)
            return
        assert type(layer) is nn.Linear, (path, layer)
        ranges = self._ranges(path, self._widths(path, parts, layer.out_features))
        self._set_columns(path, nn.Linear, layer, ranges)

    def cut_gathered(self, path: str) -> None:
        layer = self.model.get_submodule(path)
        assert type(layer) is nn.Linear, (path, layer)
        made = self._set_columns(path, GatheredLinear, layer, self._ranges(path, [layer.out_features]))
        made.line, made.sizes = self.line, self.line.sizes(layer.out_features)

    def cut_rows(self, path: str, parts: Parts) -> None:
        layer = self.model.get_submodule(path)
        assert type(layer) is nn.Linear, (path, layer)
        ranges = self._ranges(path, self._widths(path, parts, layer.in_features))
        made = RowLinear(_length(ranges), layer.out_features, bias=layer.bias is not None, device="meta")
        made.line = self.line
        self._set(path, made)
        self.cuts[f"{path}.weight"] = Cut(1, ranges)

    def cut_norm(self, path: str) -> None:
        norm = self.model.get_submodule(path)
        assert type(norm) is nn.RMSNorm, (path, norm)
        ranges = self._ranges(path, list(norm.normalized_shape))
        self._set(path, LineRMSNorm(norm, _length(ranges), self.line))
        self.cuts[f"{path}.weight"] = Cut(0, ranges)

    def cut_vocabulary(self, path: str) -> None:
        table = self.model.get_submodule(path)
        assert isinstance(table, nn.Embedding), (path, table)
        ((first, last),) = ranges = self._ranges(path, [table.num_embeddings])
        made = LineEmbedding(last - first, table.embedding_dim, device="meta")
        made.first, made.line = first, self.line
        self._set(path, made)
        self.cuts[f"{path}.weight"] = Cut(0, ranges)

    def share_heads_out(self, path: str, heads: Heads) -> None:
        """Makes what an attention module knows of its heads true for those of this rank."""
        attention, count = self.model.get_submodule(path), self.heads[path]
        own = self.line.sizes(count)[self.line.index]
        for name in heads.shared_out:
            setattr(attention, name, getattr(attention, name) // count * own)

    def _widths(self, path: str, parts: Parts, width: int) -> list[int]:
        """How wide each part of a layer is."""
        if isinstance(parts, int):
            assert width % parts == 0, (path, width, parts)
            return [width // parts] * parts
        owner = path.rpartition(".")[0]
        layers = [self.modules.get(f"{owner}.{name}") for name in parts]
        widths = [
            layer.out_features if isinstance(layer, nn.Linear) else getattr(self.modules[owner], name)
            for name, layer in zip(parts, layers, strict=True)
        ]
        assert sum(widths) == width, (path, width, widths)
        return widths

    def _ranges(self, path: str, widths: Sequence[int]) -> Ranges:
        """This rank's share of every part, in whole heads inside an attention module."""
        owner = path
        while owner and owner not in self.heads:
            owner = owner.rpartition(".")[0]
        heads = self.heads.get(owner, 0)
        ranges = []
        for end, width in zip(accumulate(widths), widths, strict=True):
            unit = width // heads if heads and width % heads == 0 else 1
            sizes = [size * unit for size in self.line.sizes(width // unit)]
            start = end - width + sum(sizes[: self.line.index])
            ranges.append((start, start + sizes[self.line.index]))
        return tuple(ranges)

    def _set_columns(self, path: str, kind: type[L], layer: nn.Linear, ranges: Ranges) -> L:
        biased = layer.bias is not None
        made = kind(layer.in_features, _length(ranges), bias=biased, device="meta")
        self._set(path, made)
        for tensor in ("weight", "bias") if biased else ("weight",):
            self.cuts[f"{path}.{tensor}"] = Cut(0, ranges)
        return made

    def _set(self, path: str, module: nn.Module) -> None:
        self.model.set_submodule(path, module.train(self.model.training))


@dataclass(frozen=True)
class _InputCut:
    """A hook that gives a module its rank's part of some of its keyword arguments."""

    line: Line
    dims: Mapping[str, int]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cut = {name: self._part(kwargs[name], dim) for name, dim in self.dims.items() if kwargs.get(name) is not None}
        return args, {**kwargs, **cut}

    def _part(self, value: Any, dim: int) -> Any:
        if isinstance(value, tuple):
            return tuple(self._part(each, dim) for each in value)
        return self.line.cut(value, dim)


def _parts_of(layers: Sequence[str | Packed]) -> dict[str, Parts]:
    return {layer.path: layer.parts for layer in map(_packed, layers)}


def _packed(layer: str | Packed) -> Packed:
    return layer if isinstance(layer, Packed) else Packed(layer, 1)


def _matching(model: nn.Module, wanted: Mapping[str, T]) -> list[tuple[str, T]]:
    """The modules that each pattern names, with what the plan says of them."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    found = []
    for pattern, said in wanted.items():
        is_named = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+")).fullmatch
        found += [(name, said) for name in names if is_named(name)]
    return found


def _length(ranges: Ranges) -> int:
    return sum(stop - start for start, stop in ranges)

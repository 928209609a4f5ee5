"""Sequence parallelism: between the first block and the last each rank has a part of the tokens.

Tokens are cut where they enter the first block, put together where the plan says, and between the two only attention
needs the others: Ulysses trades tokens for heads, the ring passes keys and values on; together they are USP. Lengths
are known on the host, parts may differ by a token, and nothing is padded. Every stream (text, image) is cut by itself,
so a rank's keys come in another order than one rank's: attention does not mind, rounding does.

Legend: B samples, S tokens of a rank, H heads, D head width, U Ulysses degree. Source: Jacobs et al. 2023, "DeepSpeed
Ulysses"; Fang and Zhao 2024, "USP".
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from difftool.errors import RecipeError
from difftool.parallel.mesh import Line, Mesh
from difftool.parallel.plans import SequencePlan, Split, Splits
from difftool.parallel.ring import ring_attention
from difftool.parallel.seam import Kernel, TorchKernel, attend_through, attends_through


class Shards:
    """The tokens of one forward: how long each stream is, and what of it this rank has."""

    def __init__(self, line: Line):
        self.line = line
        self.lengths: dict[str, int] = {}
        self._cut: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, *_: object) -> None:
        """Forgets the forward before."""
        self.lengths, self._cut = {}, {}

    def sizes(self, streams: Sequence[str]) -> list[int]:
        """How many tokens of these streams each rank has."""
        by_stream = [self.line.sizes(self.lengths[stream]) for stream in streams]
        return [sum(each) for each in zip(*by_stream, strict=True)]

    def enter(self, tensor: Tensor, split: Split) -> Tensor:
        """This rank's part of a stream that comes to the first block."""
        (stream,) = split.streams
        self.lengths[stream] = tensor.shape[split.dim]
        return self.line.cut(tensor, split.dim).contiguous()

    def follow(self, value: Any, splits: Splits) -> Any:
        """The same part of what goes with the tokens: a tensor, or a tuple of them; None is left."""
        if isinstance(splits, tuple):
            return tuple(self.follow(*pair) for pair in zip(value, splits, strict=True))
        if value is None or value.shape[splits.dim] == 1 or value.ndim != (splits.ndim or value.ndim):
            return value
        if id(value) not in self._cut:
            # the tensor is kept, or its id could come to name another
            self._cut[id(value)] = value, self._part(value, splits)
        return self._cut[id(value)][1]

    def gather(self, tensor: Tensor, split: Split) -> Tensor:
        """The streams of all ranks, each in its order."""
        parts = self.line.gather(tensor, split.dim, self.sizes(split.streams))
        by_stream = [self.line.sizes(self.lengths[stream]) for stream in split.streams]
        pieces = [part.split([sizes[i] for sizes in by_stream], split.dim) for i, part in enumerate(parts)]
        return torch.cat([piece for of_stream in zip(*pieces, strict=True) for piece in of_stream], split.dim)

    def _part(self, tensor: Tensor, split: Split) -> Tensor:
        lengths = [self.lengths[stream] for stream in split.streams]
        assert tensor.shape[split.dim] == sum(lengths), (tensor.shape, split, lengths)
        return torch.cat([self.line.cut(part, split.dim) for part in tensor.split(lengths, split.dim)], split.dim)


class SequenceAttention:
    """Attention of this rank's tokens to those of all ranks, computed by `kernel`."""

    def __init__(self, mesh: Mesh, shards: Shards, streams: Sequence[str], kernel: Kernel):
        self.ulysses, self.ring, self.sequence = mesh["ulysses"], mesh["ring"], mesh.sequence
        self.shards = shards
        self.streams = streams
        self.kernel = kernel

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        backend: str | None = None,
        parallel_config: None = None,
        **arguments: Any,
    ) -> Tensor:
        """[B, S, H, D] each -> [B, S, H, D], as diffusers' dispatcher; `attn_mask` is of this rank's keys."""
        sizes = self.shards.sizes(self.streams)
        assert query.shape[1] == key.shape[1] == sizes[self.sequence.index], (query.shape, key.shape, sizes)
        if attn_mask is not None:
            if self.ring.degree > 1:
                raise RecipeError("parallel.ring passes no masks on, and texts of unlike length need one; use ulysses")
            attn_mask = torch.cat(self.ulysses.gather(attn_mask, attn_mask.ndim - 1, sizes), -1)
        first = self.ring.index * self.ulysses.degree
        mine = sizes[first : first + self.ulysses.degree]
        query, key, value = self._to_heads((query, key, value), mine)
        if self.ring.degree > 1:
            assert not any(arguments.get(name) for name in ("dropout_p", "is_causal", "scale")), arguments
            each = [sum(sizes[i : i + self.ulysses.degree]) for i in range(0, len(sizes), self.ulysses.degree)]
            found = ring_attention(query, key, value, self.ring, each, self.kernel.with_lse)
        else:
            found = self.kernel(query, key, value, attn_mask=attn_mask, **arguments)
        return self._to_tokens(found, mine)

    def _to_heads(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> Sequence[Tensor]:
        """[B, S, H, D] of some tokens -> [B, sum of sizes, H / U, D]: all tokens of the Ulysses ranks, some heads."""
        degree = self.ulysses.degree
        if degree == 1:
            return tensors
        heads = [tensor.shape[2] // degree for tensor in tensors]
        packed = torch.cat([tensor.unflatten(2, (degree, -1)) for tensor in tensors], dim=3)  # [B, S, U, h, D]
        rows = packed.permute(2, 1, 0, 3, 4).flatten(0, 1)
        found = self.ulysses.all_to_all(rows, send=[packed.shape[1]] * degree, receive=sizes)
        return found.transpose(0, 1).split(heads, dim=2)

    def _to_tokens(self, tensor: Tensor, sizes: Sequence[int]) -> Tensor:
        """[B, sum of sizes, H / U, D] -> [B, S, H, D]."""
        degree, own = self.ulysses.degree, sizes[self.ulysses.index]
        if degree == 1:
            return tensor
        rows = self.ulysses.all_to_all(tensor.transpose(0, 1), send=sizes, receive=[own] * degree)
        return rows.unflatten(0, (degree, own)).permute(2, 1, 0, 3, 4).flatten(2, 3)


def apply(
    transformer: nn.Module, plan: SequencePlan, mesh: Mesh, stand_ins: Mapping[str, nn.Module] = MappingProxyType({})
) -> Callable[[], None]:
    """Splits the denoiser's tokens over `mesh.sequence`; each attention module keeps the kernel that it has.
    `stand_ins` are called in the place of these lists' blocks, and may leave the last one out. What is returned takes
    everything back.
    """
    shards = Shards(mesh.sequence)
    blocks = [block for name in plan.blocks for block in transformer.get_submodule(name)]
    known = {name for block in blocks for name in _names(block)}
    assert {*plan.tokens, *plan.constant} <= known, f"{type(transformer).__name__}: {sorted(known)}"
    handles = [transformer.register_forward_pre_hook(shards.begin)]
    handles += [
        block.register_forward_pre_hook(partial(_enter, shards, plan, _names(block)), with_kwargs=True)
        for block in blocks
    ]
    name, side, split = plan.gather
    owner = name.rpartition(".")[0]
    module = stand_ins[owner] if owner in stand_ins else _module(transformer, name)
    if side == "input":
        handles.append(module.register_forward_pre_hook(lambda _, given: (shards.gather(given[0], split), *given[1:])))
    else:
        handles.append(module.register_forward_hook(lambda _, given, made: shards.gather(made, split)))
    restored: list[tuple[nn.Module, Any]] = []
    for block in blocks:
        for name, streams in plan.attention.items():
            if (attention := getattr(block, name, None)) is not None:
                restored.append((attention, attention.processor))
                kernel = attends_through(attention.processor) or TorchKernel()
                across = SequenceAttention(mesh, shards, streams, kernel)
                attention.processor = attend_through(attention.processor, across)

    def undo() -> None:
        for handle in handles:
            handle.remove()
        for attention, processor in restored:
            attention.processor = processor

    return undo


def _module(transformer: nn.Module, path: str) -> nn.Module:
    """The module at a path, where a number may count from the end of a list."""
    owner, _, last = path.rpartition(".")
    lists = transformer.get_submodule(owner)
    return lists[int(last)] if isinstance(lists, nn.ModuleList) else lists.get_submodule(last)


def _names(block: nn.Module) -> tuple[str, ...]:
    return tuple(signature(block.forward).parameters)


def _enter(
    shards: Shards,
    plan: SequencePlan,
    names: Sequence[str],
    block: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A block's arguments, with this rank's part of those that follow the tokens."""
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if not shards.lengths:
        for name, split in plan.tokens.items():
            given[name] = shards.enter(given[name], split)
        _check_lengths(shards, plan)
    for name, splits in plan.constant.items():
        if given.get(name) is not None:
            given[name] = shards.follow(given[name], splits)
    return tuple(given[name] for name, _ in zip(names, args, strict=False)), {name: given[name] for name in kwargs}


def _check_lengths(shards: Shards, plan: SequencePlan) -> None:
    for stream, length in shards.lengths.items():
        if plan.never_empty and length < shards.line.degree:
            ranks = shards.line.degree
            raise RecipeError(f"parallel.sp={ranks}: the {stream} has {length} tokens, fewer than ranks; use fewer")

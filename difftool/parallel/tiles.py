"""Decoding in parallel: the tiles of one decode are dealt to the ranks of a line, and all ranks get all of them.

The VAE's own decode runs twice, each time with something in the place of its decoder. First with nothing computed: what
it would give to the decoder is written down, call by call. Then every rank decodes its share of the calls, as they
were, and the second time the decode is handed the results in order, which it blends as ever. So the pixels are those of
one rank that decodes in tiles, bit for bit. Calls that pass a cache of features on are one tile, and stay on one rank.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from difftool.parallel.mesh import Line

# diffusers' classes whose decode calls its decoder once for a tile, or for a part of one with a cache of features
DEALT = (
    "AutoencoderKL",
    "AutoencoderKLFlux2",
    "AutoencoderKLHunyuanVideo",
    "AutoencoderKLLTXVideo",
    "AutoencoderKLQwenImage",
    "AutoencoderKLWan",
)


@dataclass(frozen=True)
class Call:
    """What a decode gives to its decoder: a tile of latents first. Calls of one `tile` follow each other."""

    tile: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def size(self) -> int:
        """How much work it is, in numbers of latents."""
        latents: Tensor = self.args[0]
        return latents.numel()


class Recorder(nn.Module):
    """Stands in for a decoder, and answers with nothing: a picture without channels."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder  # some decodes count its layers
        self.calls: list[Call] = []

    def forward(self, latents: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        cache = kwargs.get("feat_cache")
        follows = cache is not None and self.calls and self.calls[-1].kwargs.get("feat_cache") is cache
        tile = self.calls[-1].tile + (not follows) if self.calls else 0
        self.calls.append(Call(tile, (latents, *args), kwargs))
        return latents.new_empty((len(latents), 0, *(1 for _ in latents.shape[2:])))


class Replay(nn.Module):
    """Stands in for a decoder, and answers what was decoded before, in order."""

    def __init__(self, decoder: nn.Module, decoded: Sequence[Tensor]):
        super().__init__()
        self.decoder = decoder
        self.left = list(reversed(decoded))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.left.pop()


def deal(sizes: Sequence[int], ranks: int) -> list[int]:
    """The rank of each tile: the largest first, each to the rank that has least. Source: Graham 1969, LPT."""
    load, owners = [0] * ranks, [0] * len(sizes)
    for tile in sorted(range(len(sizes)), key=lambda tile: -sizes[tile]):
        owners[tile] = load.index(min(load))
        load[owners[tile]] += sizes[tile]
    return owners


def apply(vae: Any, line: Line) -> Callable[[], None]:
    """Deals the tiles of every decode to the ranks of the line. What is returned takes it back."""
    assert type(vae).__name__ in DEALT, type(vae)
    whole = vae.decode

    def decode(*args: Any, **kwargs: Any) -> Any:
        recorder = Recorder(vae.decoder)
        with _in_place(vae, recorder):
            whole(*args, **kwargs)
        if recorder.calls[-1].tile == 0:  # one tile: there is nothing to deal
            return whole(*args, **kwargs)
        replay = Replay(vae.decoder, _decoded(vae.decoder, recorder.calls, line))
        with _in_place(vae, replay):
            made = whole(*args, **kwargs)
        assert not replay.left, len(replay.left)
        return made

    vae.decode = decode

    def undo() -> None:
        del vae.decode

    return undo


def _decoded(decoder: nn.Module, calls: Sequence[Call], line: Line) -> list[Tensor]:
    """What the decoder answers to every call, each computed by one rank."""
    sizes = [0] * (calls[-1].tile + 1)
    for call in calls:
        sizes[call.tile] += call.size
    owner = deal(sizes, line.degree)
    own = [i for i, call in enumerate(calls) if owner[call.tile] == line.index]
    made = {i: decoder(*calls[i].args, **calls[i].kwargs) for i in own}
    like = calls[0].args[0]
    # a rank does not know what shape others' pixels have: on the host, as nothing on the device depends on it
    shapes = torch.zeros(len(calls), like.ndim, dtype=torch.int64)
    for i, tensor in made.items():
        assert tensor.dtype == like.dtype, (tensor.dtype, like.dtype)
        shapes[i] = torch.tensor(tensor.shape)
    every = line.all_reduce(shapes).tolist()
    lengths = [sum(prod(every[i]) for i, c in enumerate(calls) if owner[c.tile] == rank) for rank in range(line.degree)]
    mine = torch.cat([made.pop(i).flatten() for i in own]) if own else like.new_empty(0)
    parts = [_pieces(part, calls, owner, rank, every) for rank, part in enumerate(line.gather(mine, 0, lengths))]
    return [next(parts[owner[call.tile]]) for call in calls]


def _pieces(
    flat: Tensor, calls: Sequence[Call], owner: Sequence[int], rank: int, shapes: Sequence[Sequence[int]]
) -> Iterator[Tensor]:
    """What one rank decoded, out of its numbers, in order."""
    start = 0
    for call, shape in zip(calls, shapes, strict=True):
        if owner[call.tile] == rank:
            length = prod(shape)
            yield flat[start : start + length].view(shape)
            start += length


@contextmanager
def _in_place(vae: Any, decoder: nn.Module) -> Iterator[None]:
    """Within, this is the VAE's decoder."""
    own = vae.decoder
    vae.decoder = decoder
    try:
        yield
    finally:
        vae.decoder = own

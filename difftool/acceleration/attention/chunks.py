"""Tokens of a video put chunk by chunk, and blocks laid over them.

Legend: B samples, S tokens, V those of the video, H heads, D head width, C chunks, N blocks of SIZE places.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from difftool.acceleration.attention.video import Grid, parts_of

SIZE = 64  # places of a block, as those of VSA's cubes


@dataclass(frozen=True)
class Chunks:
    """Tokens put chunk by chunk, frame-major inside one; then those beside the video, then the last of all again to the
    end of its block. As keys, these copies are never seen.
    """

    grid: Grid
    chunk: Grid
    others: int
    device: torch.device

    @property
    def tokens(self) -> int:
        """Those of the video."""
        return math.prod(self.grid)

    @property
    def counts(self) -> Grid:
        """How many chunks, along each side."""
        return parts_of(self.grid, self.chunk)

    @cached_property
    def owner(self) -> Tensor:
        """[V] the chunk of each token of the video."""
        cut = [torch.arange(side) // by for side, by in zip(self.grid, self.chunk, strict=True)]
        _, rows, columns = self.counts
        found = (cut[0][:, None, None] * rows + cut[1][:, None]) * columns + cut[2]
        return found.flatten().to(self.device)

    @cached_property
    def sizes(self) -> Tensor:
        """[C] tokens of each chunk."""
        return self.owner.bincount(minlength=math.prod(self.counts))

    @cached_property
    def order(self) -> Tensor:
        """[N x SIZE] the token at each place."""
        total = self.tokens + self.others
        places = torch.arange(math.ceil(total / SIZE) * SIZE, device=self.device)
        beside = places[self.tokens :].clamp(max=total - 1)
        order = torch.cat([self.owner.argsort(stable=True), beside])
        return order if self.others else torch.where(places < total, order, order[self.tokens - 1])

    @cached_property
    def group(self) -> Tensor:
        """[N x SIZE] what each place is seen as: one of C chunks, C for what is beside the video, C + 1 for a copy."""
        places, chunks = torch.arange(len(self.order), device=self.device), len(self.sizes)
        copies = chunks + (places >= self.tokens + self.others).long()
        return torch.where(places < self.tokens, self.owner[self.order.clamp(max=self.tokens - 1)], copies)

    @cached_property
    def touched(self) -> Tensor:
        """fp32 [C + 2, N], 1 where a block has a place of a group."""
        found = torch.zeros(len(self.sizes) + 2, len(self.group) // SIZE, device=self.device)
        found[self.group, torch.arange(len(self.group), device=self.device) // SIZE] = 1
        return found

    @cached_property
    def place(self) -> Tensor:
        """[S] where each token lies."""
        return self.order[: self.tokens + self.others].argsort()

    def blocks(self, query: Tensor) -> int:
        """Those of [B, S, H, D]: N x N for each sample and head."""
        return query.shape[0] * query.shape[2] * (len(self.order) // SIZE) ** 2

    def means(self, key: Tensor) -> Tensor:
        """[B, S, H, D] -> fp32 [B, H, C, D], the mean of each chunk's tokens."""
        whole = [side for by, count in zip(self.chunk, self.counts, strict=True) for side in (count, by)]
        gaps = [by * count - side for side, by, count in zip(self.grid, self.chunk, self.counts, strict=True)]
        video = key[:, : self.tokens].unflatten(1, self.grid)
        video = pad(video, (0, 0, 0, 0, 0, gaps[2], 0, gaps[1], 0, gaps[0]))
        cut = video.reshape(len(key), *whole, *key.shape[2:])
        sums = cut.sum((2, 4, 6), dtype=torch.float32).flatten(1, 3).transpose(1, 2)
        return sums / self.sizes[:, None]

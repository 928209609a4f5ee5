"""Attention between some of the tiles of a video alone: by FlexAttention, which runs anywhere, or FastVideo's kernel.

Tokens are put tile by tile, each tile a block of the mask, filled up where the grid ends; what fills it is never seen.
Tokens beside the video (a text) see all and are seen by all. How many blocks are visited is counted.

Legend: B samples, S tokens, H heads, D head width, T tiles of the video, N blocks: T and those of the other tokens.
Sources: Zhang et al. 2025, "Fast Video Generation with Sliding Tile Attention"; Zhang et al. 2025, "VSA: Faster Video
Diffusion with Trainable Sparse Attention", of which this is the fine stage: the gate of its coarse one is learnt.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from difftool.acceleration.attention import fastvideo
from difftool.acceleration.attention.kernels import flex_attention, masked_error
from difftool.acceleration.attention.video import Grid, Layout, Video, mask_of_blocks, options
from difftool.acceleration.attention.vmoba import VMOBA, moba_kernels
from difftool.attention import FLEX, Strategy
from difftool.errors import PlanError
from difftool.parallel.seam import Kernel

SLIDING_TILE: Grid = (6, 8, 8)  # tokens of a tile, as the mask files of FastVideo count them
CUBE: Grid = (4, 4, 4)
# (queries and keys [B, H, N x size, D], the layout) -> which tiles each tile sees, bool [1 or B, H, T, T]
Choose = Callable[[Tensor, Tensor, Layout], Tensor]
# (queries, keys and values [B, H, N x size, D], bool [1 or B, H, N, N] which blocks each block sees, the layout, the
# scale of the scores) -> [B, H, N x size, D]
Compute = Callable[[Tensor, Tensor, Tensor, Tensor, Layout, float | None], Tensor]


def by_flex(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, layout: Layout, scale: float | None) -> Tensor:
    """FlexAttention's."""
    mask, tiles = block_mask(seen, layout), options(layout.size)
    found: Tensor = flex_attention(query, key, value, block_mask=mask, scale=scale, kernel_options=tiles)
    return found


@dataclass(frozen=True)
class TileKernel:
    """Attention of each tile to those that `choose` names, as `compute` does it."""

    name: str
    video: Video
    tile: Grid
    choose: Choose
    compute: Compute = by_flex

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        scale: float | None = None,
        **_: Any,
    ) -> Tensor:
        if attn_mask is not None:
            raise masked_error(self.name)
        layout = self.video.layout(Layout, self.tile, query)
        packed = [layout.pack(tensor) for tensor in (query, key, value)]
        seen = with_others(self.choose(packed[0], packed[1], layout), layout)
        self.video.count(seen.sum() * (query.shape[0] // seen.shape[0]), query.shape[0] * seen[0].numel())
        return layout.unpack(self.compute(packed[0], packed[1], packed[2], seen, layout, scale))

    def with_lse(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError(f"{self.name} tells no log-sum-exp")


def with_others(seen: Tensor, layout: Layout) -> Tensor:
    """[.., T, T] -> [.., N, N], where the blocks beside the video see all and are seen by all."""
    beside = layout.blocks - seen.shape[-1]
    return nn.functional.pad(seen, (0, beside, 0, beside), value=True)


def block_mask(seen: Tensor, layout: Layout) -> BlockMask:
    """FlexAttention's, of the blocks [1 or B, H, N, N] that are seen; a block with gaps is looked at token by token."""
    size, there = layout.size, layout.there

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return seen[b if seen.shape[0] > 1 else 0, h, i // size, j // size] & there[j]

    return mask_of_blocks(seen, seen & layout.whole, size, visible)


def windows(sizes: Sequence[Grid], tiles: Grid) -> Tensor:
    """[H, T, T]: the window of each head, in tiles, around each tile; at an edge of the video it is moved inside."""
    return torch.stack([_window(size, tiles) for size in sizes])


def _window(size: Grid, tiles: Grid) -> Tensor:
    sides = []
    for width, count in zip(size, tiles, strict=True):
        own = torch.arange(count)
        start = (own - width // 2).clamp(0, max(count - width, 0))[:, None]
        sides.append((own >= start) & (own < start + width))
    frames, rows, columns = sides
    seen = frames[:, None, None, :, None, None] & rows[None, :, None, None, :, None] & columns[:, None, None, :]
    total = math.prod(tiles)
    return seen.reshape(total, total)


class SlidingTile:
    """The tiles in a window around each, by the head, layer and step of a strategy."""

    def __init__(self, video: Video, strategy: Strategy, layer: int):
        self.video, self.strategy, self.layer = video, strategy, layer
        self._made: dict[object, Tensor] = {}

    def __call__(self, query: Tensor, key: Tensor, layout: Layout) -> Tensor:
        if short := self.strategy.too_short(self.video.steps):
            raise PlanError(short)
        sizes = self.strategy.of(self.video.step, self.layer, query.shape[1])
        if (wanted := (sizes, layout.tiles, layout.device)) not in self._made:
            self._made = {**self._made, wanted: windows(sizes, layout.tiles)[None].to(layout.device)}
        return self._made[wanted]


@dataclass(frozen=True)
class TopCubes:
    """The cubes whose mean key is most like the mean query of each: a share of 1 - `sparsity` of them, at least one."""

    sparsity: float

    def __call__(self, query: Tensor, key: Tensor, layout: Layout) -> Tensor:
        scores = layout.means(query) @ layout.means(key).transpose(2, 3)
        kept = kept_of(scores.shape[-1], self.sparsity)
        return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(kept).indices, value=True)


def kept_of(tiles: int, sparsity: float) -> int:
    """How many of so many cubes each sees; rounded first, as 0.9 of 10 is a little less than 9."""
    return max(1, math.ceil(round((1 - sparsity) * tiles, 6)))


def tile_kernels(
    name: str, options: Mapping[str, Any], video: Video, heads: Sequence[int], kernel: str = FLEX
) -> Sequence[Kernel]:
    """The kernels of a denoiser's layers, which have so many heads each. Raises PlanError for a wrong mask file, and
    for layers that none is left of.
    """
    if name == VMOBA:
        return moba_kernels(options["moba_config"], video, len(heads), kernel)
    compute = COMPUTE[kernel]
    if name == "video_sparse_attn":
        return [TileKernel(name, video, CUBE, TopCubes(options["sparsity"]), compute)] * len(heads)
    assert name == "sliding_tile_attn", name
    strategy = Strategy.read(options["mask_strategy_file_path"])
    if missing := strategy.missing(len(heads), max(heads, default=0)):
        raise PlanError(missing)
    layers = [SlidingTile(video, strategy, layer) for layer in range(len(heads))]
    return [TileKernel(name, video, SLIDING_TILE, layer, compute) for layer in layers]


COMPUTE: Mapping[str, Compute] = {FLEX: by_flex, "fastvideo": fastvideo.compute}

"""Attention between some of the tiles of a video alone, on FlexAttention's block masks: it runs where that does.

Tokens are put tile by tile, each tile a block of the mask, filled up where the grid ends; what fills it is never seen.
Tokens beside the video (a text) see all and are seen by all. How many blocks are visited is counted.

Legend: B samples, S tokens, H heads, D head width, T tiles of the video, N blocks: T and those of the other tokens.
Sources: Zhang et al. 2025, "Fast Video Generation with Sliding Tile Attention"; Zhang et al. 2025, "VSA: Faster Video
Diffusion with Trainable Sparse Attention", of which this is the fine stage: the gate of its coarse one is learnt.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from difftool.acceleration.attention.kernels import flex_attention, masked_error
from difftool.errors import PlanError

Grid = tuple[int, int, int]  # frames, rows and columns
ReadGrid = Callable[[nn.Module, Mapping[str, Any]], Grid]  # from a denoiser and its arguments
CLAIMED_FROM = 1024  # tokens: of fewer, nothing is said of sparsity
SLIDING_TILE: Grid = (6, 8, 8)  # tokens of a tile, as the mask files of FastVideo count them
CUBE: Grid = (4, 4, 4)


@dataclass(eq=False)
class Video:
    """What the kernels of one denoiser share while it runs: the grid of its tokens, the step, and what was visited."""

    grid: Grid = (0, 0, 0)
    step: int = 0
    steps: int = 0
    visited: Any = 0  # blocks: a number, or a tensor on the device
    blocks: int = 0
    tokens: int = 0
    layouts: dict[Any, "Layout"] = field(default_factory=dict)

    def follow(self, model: nn.Module, read: "ReadGrid") -> None:
        """Reads the grid from the arguments of every forward."""

        def note(module: nn.Module, _: tuple[Any, ...], given: Mapping[str, Any]) -> None:
            self.grid = read(module, given)

        model.register_forward_pre_hook(note, with_kwargs=True)

    def layout(self, tile: Grid, others: int, device: torch.device) -> "Layout":
        """That of this grid, with so many tokens beside it."""
        key = (self.grid, tile, others, device)
        if key not in self.layouts:
            self.layouts = {**{k: v for k, v in self.layouts.items() if k[0] == self.grid}, key: Layout(*key)}
        return self.layouts[key]

    def count(self, visited: Any, blocks: int) -> None:
        self.visited, self.blocks, self.tokens = self.visited + visited, self.blocks + blocks, math.prod(self.grid)

    def told(self) -> dict[str, object]:
        """What was visited since it was told last, and the sparsity where the video is long enough to speak of one.
        Waits for the device.
        """
        visited, blocks = int(self.visited), self.blocks
        self.visited = self.blocks = 0
        told: dict[str, object] = {"visited_blocks": visited, "blocks": blocks}
        return told | ({"left_out": round(1 - visited / blocks, 4)} if blocks and self.tokens >= CLAIMED_FROM else {})


@dataclass(frozen=True)
class Layout:
    """Tokens put tile by tile: frame-major in the grid, and so inside a tile."""

    grid: Grid
    tile: Grid
    others: int
    device: torch.device

    @property
    def size(self) -> int:
        """Tokens of a block."""
        return math.prod(self.tile)

    @property
    def tiles(self) -> Grid:
        """How many of them, along each side."""
        frames, rows, columns = (math.ceil(side / by) for side, by in zip(self.grid, self.tile, strict=True))
        return frames, rows, columns

    @cached_property
    def blocks(self) -> int:
        return math.prod(self.tiles) + math.ceil(self.others / self.size)

    @cached_property
    def order(self) -> Tensor:
        """[N x size] the token that lies at each place; -1 where none does."""
        padded = [count * by for count, by in zip(self.tiles, self.tile, strict=True)]
        places = torch.full(padded, -1, dtype=torch.long)
        frames, rows, columns = self.grid
        places[:frames, :rows, :columns] = torch.arange(math.prod(self.grid)).view(self.grid)
        (f, r, c), (tf, tr, tc) = self.tiles, self.tile
        video = places.view(f, tf, r, tr, c, tc).permute(0, 2, 4, 1, 3, 5).flatten()
        rest = torch.full((self.blocks * self.size - len(video),), -1, dtype=torch.long)
        rest[: self.others] = math.prod(self.grid) + torch.arange(self.others)
        return torch.cat([video, rest]).to(self.device)

    @cached_property
    def there(self) -> Tensor:
        """[N x size] where a token lies."""
        return self.order >= 0

    @cached_property
    def whole(self) -> Tensor:
        """[N] blocks without a gap."""
        return self.there.view(self.blocks, self.size).all(1)

    @cached_property
    def place(self) -> Tensor:
        """[S] where each token lies."""
        found = torch.empty(math.prod(self.grid) + self.others, dtype=torch.long, device=self.device)
        found[self.order[self.there]] = self.there.nonzero()[:, 0]
        return found

    def pack(self, tensor: Tensor) -> Tensor:
        """[B, S, H, D] -> [B, H, N x size, D], 0 where no token lies."""
        return tensor.transpose(1, 2)[:, :, self.order.clamp(min=0)] * self.there[:, None]

    def unpack(self, tensor: Tensor) -> Tensor:
        """[B, H, N x size, D] -> [B, S, H, D]."""
        return tensor[:, :, self.place].transpose(1, 2)

    def means(self, packed: Tensor) -> Tensor:
        """[B, H, N x size, D] -> fp32 [B, H, T, D], the mean of each tile's tokens."""
        tiles = math.prod(self.tiles)
        video = packed[:, :, : tiles * self.size].unflatten(2, (tiles, self.size)).float()
        counts = self.there[: tiles * self.size].view(tiles, self.size).sum(1)
        return video.sum(3) / counts[:, None]


# (queries and keys [B, H, N x size, D], the layout) -> which tiles each tile sees, bool [1 or B, H, T, T]
Choose = Callable[[Tensor, Tensor, Layout], Tensor]


@dataclass(frozen=True)
class TileKernel:
    """Attention of each tile to those that `choose` names."""

    name: str
    video: Video
    tile: Grid
    choose: Choose

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
        layout = self.video.layout(self.tile, query.shape[1] - math.prod(self.video.grid), query.device)
        packed = [layout.pack(tensor) for tensor in (query, key, value)]
        seen = with_others(self.choose(packed[0], packed[1], layout), layout)
        self.video.count(seen.sum() * (query.shape[0] // seen.shape[0]), query.shape[0] * seen[0].numel())
        out = flex_attention(*packed, block_mask=block_mask(seen, layout), scale=scale, kernel_options=options(layout))
        return layout.unpack(out)

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

    (gaps, with_gaps), (whole, at_once) = (_ordered(part) for part in (seen & ~layout.whole, seen & layout.whole))
    length = layout.blocks * size
    return BlockMask.from_kv_blocks(
        gaps, with_gaps, whole, at_once, BLOCK_SIZE=(size, size), mask_mod=visible, seq_lengths=(length, length)
    )


def _ordered(seen: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each block sees, and which: those first."""
    first = seen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return seen.sum(-1, dtype=torch.int32), first.to(torch.int32)


def options(layout: Layout) -> dict[str, int]:
    """Of the compiled kernel: tiles that divide the blocks."""
    return {"BLOCK_M": math.gcd(layout.size, 128), "BLOCK_N": math.gcd(layout.size, 64)}


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


@dataclass(frozen=True)
class Strategy:
    """The windows of a mask file, by step, layer and head: {"0_2_5": [3, 3, 3]}, as FastVideo writes them."""

    file: str
    sizes: Mapping[tuple[int, int, int], Grid]
    steps: int

    @classmethod
    def read(cls, file: str, layers: int, heads: int) -> "Strategy":
        """Raises PlanError for one that is not for a denoiser of so many layers and heads."""
        try:
            said = json.loads(Path(file).read_text(encoding="utf-8"))
            sizes = {_key(key): _size(value) for key, value in said.items()}
        except (OSError, ValueError, AttributeError) as error:
            hint = 'it is JSON such as {"0_0_0": [3, 3, 3]}: step_layer_head, and the window in tiles'
            raise PlanError(f"mask_strategy_file_path: {file} is no mask file: {error}", hint=hint) from error
        steps = 1 + max((step for step, _, _ in sizes), default=-1)
        wanted = {(s, la, h) for s in range(steps) for la in range(layers) for h in range(heads)}
        if not sizes or wanted - sizes.keys():
            missing = min(wanted - sizes.keys(), default=(0, 0, 0))
            raise PlanError(
                f"mask_strategy_file_path: {file} has no window for step {missing[0]}, layer {missing[1]}, head "
                f"{missing[2]}; the denoiser has {layers} layers of {heads} heads"
            )
        return cls(file, sizes, steps)

    def of(self, step: int, layer: int, heads: int) -> tuple[Grid, ...]:
        """The windows of a layer's heads at a step."""
        return tuple(self.sizes[step, layer, head] for head in range(heads))


def _key(key: str) -> tuple[int, int, int]:
    step, layer, head = (int(part) for part in key.split("_"))
    return step, layer, head


def _size(value: Sequence[int]) -> Grid:
    frames, rows, columns = (int(side) for side in value)
    if min(frames, rows, columns) < 1:
        raise ValueError(f"a window of {list(value)} tiles")
    return frames, rows, columns


class SlidingTile:
    """The tiles in a window around each, by the head, layer and step of a strategy."""

    def __init__(self, video: Video, strategy: Strategy, layer: int):
        self.video, self.strategy, self.layer = video, strategy, layer
        self._made: dict[object, Tensor] = {}

    def __call__(self, query: Tensor, key: Tensor, layout: Layout) -> Tensor:
        if self.video.steps > self.strategy.steps:
            raise PlanError(
                f"mask_strategy_file_path: {self.strategy.file} has windows for {self.strategy.steps} steps, and this "
                f"item has {self.video.steps}"
            )
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


def tile_kernels(name: str, options: Mapping[str, Any], video: Video, heads: Sequence[int]) -> list[TileKernel]:
    """The kernels of a denoiser's layers, which have so many heads each. Raises PlanError for a wrong mask file."""
    if name == "video_sparse_attn":
        return [TileKernel(name, video, CUBE, TopCubes(options["sparsity"]))] * len(heads)
    assert name == "sliding_tile_attn", name
    strategy = Strategy.read(options["mask_strategy_file_path"], len(heads), max(heads, default=0))
    return [TileKernel(name, video, SLIDING_TILE, SlidingTile(video, strategy, layer)) for layer in range(len(heads))]

"""A video as attention kernels see it: the grid of its tokens, what they share while a denoiser runs, and its tokens
put tile by tile for FlexAttention's block masks.

Legend: B samples, S tokens, H heads, D head width, T tiles of the video, N blocks: T and those of the other tokens.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

Grid = tuple[int, int, int]  # frames, rows and columns
ReadGrid = Callable[[nn.Module, Mapping[str, Any]], Grid]  # from a denoiser and its arguments
L = TypeVar("L")  # a layout of the tokens
CLAIMED_FROM = 1024  # tokens: of fewer, nothing is said of sparsity


@dataclass(eq=False)
class Video:
    """What the kernels of one denoiser share while it runs: the grid of its tokens, the step, and what was visited."""

    grid: Grid = (0, 0, 0)
    step: int = 0
    steps: int = 0
    visited: Any = 0  # blocks: a number, or a tensor on the device
    blocks: int = 0
    tokens: int = 0
    layouts: dict[Any, Any] = field(default_factory=dict)

    def follow(self, model: nn.Module, read: "ReadGrid") -> None:
        """Reads the grid from the arguments of every forward."""

        def note(module: nn.Module, _: tuple[Any, ...], given: Mapping[str, Any]) -> None:
            self.grid = read(module, given)

        model.register_forward_pre_hook(note, with_kwargs=True)

    def layout(self, make: Callable[[Grid, Grid, int, torch.device], L], tile: Grid, query: Tensor) -> L:
        """That which `make` makes of this grid, of the tokens beside it in [B, S, H, D] and of the device."""
        grid, others = self.grid, query.shape[1] - math.prod(self.grid)
        key = (grid, tile, others, query.device)
        if (make, key) not in self.layouts:
            kept = {k: layout for k, layout in self.layouts.items() if k[1][0] == grid}
            self.layouts = {**kept, (make, key): make(*key)}
        return self.layouts[make, key]

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


def parts_of(grid: Grid, size: Grid) -> Grid:
    """How many of a size, along each side of a grid; the last may be smaller."""
    frames, rows, columns = (math.ceil(side / by) for side, by in zip(grid, size, strict=True))
    return frames, rows, columns


@dataclass(frozen=True)
class Layout:
    """Tokens put tile by tile: frame-major in the grid, and so inside a tile; where it has gaps, they come last."""

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
        return parts_of(self.grid, self.tile)

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
        cut = places.view(f, tf, r, tr, c, tc).permute(0, 2, 4, 1, 3, 5).reshape(-1, self.size)
        video = cut.gather(1, (cut < 0).to(torch.int8).argsort(dim=1, stable=True)).flatten()
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


def mask_of_blocks(seen: Tensor, whole: Tensor, size: int, visible: Callable[..., Tensor]) -> BlockMask:
    """FlexAttention's, of the blocks of `size` tokens [B, H, N, N] that are seen. Of those that are `whole` too, every
    pair of tokens is; into the others it looks by `visible(sample, head, query, key)`.
    """
    (some, in_part), (all_of, at_once) = (ordered(part) for part in (seen & ~whole, seen & whole))
    length = seen.shape[-1] * size
    return BlockMask.from_kv_blocks(
        some, in_part, all_of, at_once, BLOCK_SIZE=(size, size), mask_mod=visible, seq_lengths=(length, length)
    )


def ordered(seen: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each block sees, and which: those first."""
    first = seen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return seen.sum(-1, dtype=torch.int32), first.to(torch.int32)


def options(size: int) -> dict[str, int]:
    """Of the compiled kernel: tiles that divide blocks of so many tokens."""
    return {"BLOCK_M": math.gcd(size, 128), "BLOCK_N": math.gcd(size, 64)}

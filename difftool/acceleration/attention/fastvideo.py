"""Attention between some of the tiles of a video by FastVideo's block-sparse kernel: the one for Hopper where it was
built, else Triton's.

Its blocks are of 64 places, of which the first so many are tokens: a tile is one of them or several, its gaps last.

Legend: B samples, H heads, D head width, N blocks of a layout, M blocks of the kernel.
Source: `fastvideo_kernel.block_sparse_attn` 0.3.5.
"""

import torch
from torch import Tensor

from difftool.acceleration.attention.video import Layout, ordered

BLOCK = 64


def compute(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, layout: Layout, scale: float | None) -> Tensor:
    """As `sparse.Compute`. Raises ImportError where the package is not installed."""
    from fastvideo_kernel import block_sparse_attn_from_indices

    assert scale is None or scale == query.shape[-1] ** -0.5, scale  # it takes none
    sizes = sizes_of(layout)
    which, many = indices(seen.expand(len(query), -1, -1, -1), sizes)
    out, _ = block_sparse_attn_from_indices(query, key, value, which, many, sizes)
    found: Tensor = out
    return found


def sizes_of(layout: Layout) -> Tensor:
    """int32 [M] the tokens of each block."""
    return layout.there.view(-1, BLOCK).sum(1, dtype=torch.int32)


def indices(seen: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """bool [B, H, N, N] -> int32 [B, H, M, M] the blocks that each block sees, those first, and [B, H, M] how many.
    Those without a token are left out.
    """
    parts = len(sizes) // seen.shape[-1]
    many, first = ordered(seen)
    blocks = (first[..., None] * parts + torch.arange(parts, dtype=torch.int32, device=seen.device)).flatten(-2)
    places = torch.arange(len(sizes), device=seen.device)
    there = (places < many[..., None] * parts) & (sizes[blocks.long()] > 0)
    many, order = ordered(there)
    which = blocks.gather(-1, order.long())
    return which.repeat_interleave(parts, -2), many.repeat_interleave(parts, -1)

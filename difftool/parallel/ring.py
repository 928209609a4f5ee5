"""Attention over keys and values that lie on several ranks, passed around their ring: exact, merged by log-sum-exp.

Legend: B samples, S tokens of this rank, H heads, D head width. Source: Liu et al. 2023, "Ring Attention with Blockwise
Transformers for Near-Infinite Context"; the merge is that of Dao 2022, section 3.1.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from difftool.parallel.mesh import Line

aten = torch.ops.aten
WithLse = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def ring_attention(
    query: Tensor, key: Tensor, value: Tensor, ring: Line, sizes: Sequence[int], attend: WithLse
) -> Tensor:
    """[B, S, H, D] of this rank, each attending to the tokens of all ranks, of which rank i has `sizes[i]`.

    `attend` computes one block, as `attend_with_lse`. While a block is computed the next one is on its way.
    """
    query, blocks = query.transpose(1, 2), torch.stack([key, value]).transpose(2, 3)
    merged: tuple[Tensor, Tensor] | None = None
    for step in range(ring.degree):
        coming = None
        if step + 1 < ring.degree:
            before = sizes[(ring.index - step - 1) % ring.degree]
            coming = ring.pass_on([blocks], [(*blocks.shape[:3], before, blocks.shape[4])])
        if blocks.shape[3]:
            found = attend(query, *blocks)
            merged = found if merged is None else merge(merged, found)
        if coming is not None:
            (blocks,) = coming.wait()
    assert merged is not None, sizes
    return merged[0].to(query.dtype).transpose(1, 2)


def merge(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from that over each: (fp32 [B, H, S, D], log-sum-exp [B, H, S])."""
    lse = torch.logaddexp(one[1], other[1])
    parts = [values * torch.exp(own - lse)[..., None] for values, own in (one, other)]
    return parts[0] + parts[1], lse


def attend_with_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """[B, H, S, D] -> (fp32 [B, H, S, D], fp32 log-sum-exp [B, H, S]); torch's own kernels, which return both."""
    if query.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    elif query.dtype == torch.float32:
        out, lse = aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[:2]
    else:
        out, lse = aten._scaled_dot_product_flash_attention(query, key, value)[:2]
    return out.float(), lse[..., : query.shape[2]].float()

"""VMoBA by the kernel that it was published with: flash attention of sequences of unlike lengths, which torch has built
in. The queries that see a group are one sequence and its tokens the other; what a query gets of its groups is put
together by the log-sum-exp of their scores.

Legend: B samples, H heads, D head width, P places, C chunks, G groups: those of C, and what is beside the video; R the
pairs of a query and a group that it sees.
Source: `moba_attn_varlen` of FastVideo, which gathers alike; `torch.nn.attention.varlen`.
"""

import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest, varlen_attn

from difftool.acceleration.attention.chunks import SIZE, Chunks

GATHERED = 2**28  # numbers of the queries that are gathered at once, some of whose copies are in fp32


def compute(
    query: Tensor, key: Tensor, value: Tensor, choice: Tensor, chunks: Chunks, scale: float | None
) -> tuple[Tensor, Tensor]:
    """As `vmoba.Compute`. What was visited is counted in pairs of tokens, and told as so many blocks."""
    tokens, sizes = chunks.tokens + chunks.others, group_sizes(chunks)
    seen = choice[:, :, :tokens, : len(sizes)].transpose(2, 3)  # [B, H, G, P]
    there = (tensor[:, :, :tokens] for tensor in (query, key, value))
    found = torch.zeros_like(query)
    found[:, :, :tokens] = by_heads(*there, seen, sizes, scale)
    pairs = (seen.sum(-1) * sizes).sum(dtype=torch.float64)
    return found, (pairs * (len(chunks.order) / SIZE / tokens) ** 2).round().long()


def by_heads(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, sizes: Tensor, scale: float | None) -> Tensor:
    """[B, H, P, D] each and [B, H, G, P] -> [B, H, P, D], so many heads at once as `GATHERED` allows."""
    heads, numbers = query.shape[1], int(seen.sum()) * query.shape[-1]
    at_once = max(1, heads * GATHERED // max(numbers, 1))
    parts = zip(*(tensor.split(at_once, dim=1) for tensor in (query, key, value, seen)), strict=True)
    return torch.cat([attend(*part, sizes, scale) for part in parts], dim=1)


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, sizes: Tensor, scale: float | None) -> Tensor:
    """The same, of all heads at once."""
    by_group, counts = seen.flatten().nonzero()[:, 0], seen.sum(-1)  # [R], [B, H, G]
    rows = by_group // seen[0, 0].numel() * seen.shape[-1] + by_group % seen.shape[-1]
    queries, keys, values = (tensor.reshape(-1, 1, tensor.shape[-1]) for tensor in (query, key, value))
    out, lse = varlen_attn(
        queries[rows],
        keys,
        values,
        _starts(counts.flatten()),
        _starts(sizes.repeat(counts[..., 0].numel())),
        int(counts.max()),
        int(sizes.max()),
        return_aux=AuxRequest(lse=True),
        scale=scale,
    )
    return joined(out[:, 0], lse[0], rows, len(queries)).view(query.shape)


def group_sizes(chunks: Chunks) -> Tensor:
    """[G] the tokens of each chunk, and those beside the video where there are any."""
    beside = [chunks.others] if chunks.others else []
    return torch.cat([chunks.sizes, chunks.sizes.new_tensor(beside)])


def joined(out: Tensor, lse: Tensor, rows: Tensor, queries: int) -> Tensor:
    """[R, D], [R] and whose each is, of so many queries -> [queries, D], weighed by what the scores sum to. Those of a
    query are added one after another, so that the same comes out every time.
    """
    order, lengths = rows.argsort(stable=True), rows.bincount(minlength=queries)
    own, scores = rows[order], lse[order].float()
    weights = (scores - torch.segment_reduce(scores, "max", lengths=lengths, unsafe=True)[own]).exp()
    total = torch.segment_reduce(weights, "sum", lengths=lengths, unsafe=True)
    weighed = out[order].float() * (weights / total[own])[:, None]
    return torch.segment_reduce(weighed, "sum", lengths=lengths, unsafe=True).to(out.dtype)


def _starts(lengths: Tensor) -> Tensor:
    """int32, where each of so long sequences starts, and where the last ends."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)

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


def compute(
    query: Tensor, key: Tensor, value: Tensor, choice: Tensor, chunks: Chunks, scale: float | None
) -> tuple[Tensor, Tensor]:
    """As `vmoba.Compute`. What was visited is counted in pairs of tokens, and told as so many blocks."""
    tokens, sizes = chunks.tokens + chunks.others, group_sizes(chunks)
    seen = choice[:, :, :tokens, : len(sizes)].transpose(2, 3)  # [B, H, G, P]
    by_group = seen.flatten().nonzero()[:, 0]  # [R]
    rows = by_group // seen[0, 0].numel() * tokens + by_group % tokens
    queries, keys, values = (tensor[:, :, :tokens].reshape(-1, 1, tensor.shape[-1]) for tensor in (query, key, value))
    counts = seen.sum(-1)
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
    found = torch.zeros_like(query)
    found[:, :, :tokens] = joined(out[:, 0], lse[0], rows, len(queries)).view(*query.shape[:2], tokens, -1)
    pairs = (counts * sizes).sum(dtype=torch.float64)
    blocks = len(chunks.order) // SIZE
    return found, (pairs * (blocks / tokens) ** 2).round().long()


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

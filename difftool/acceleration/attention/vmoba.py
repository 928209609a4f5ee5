"""VMoBA: each query of a video sees the chunks of it whose mean key is most like it, its own chunk always.

Layers take turns with chunks of frames (temporal), of rows and columns (spatial) and of all three (st). Tokens are put
chunk by chunk, and FlexAttention's blocks are laid over them: a block is visited where any query in it sees any chunk
in the other, and looked into token by token unless all queries see all of it. The other kernel is `varlen`, which
gathers the queries of each chunk. Tokens beside the video see all and are seen by all. At the sides of a video that a
chunk does not divide, the last one is smaller.

Legend: B samples, S tokens, V those of the video, H heads, D head width, C chunks, N blocks of SIZE places.
Source: Wu et al. 2025, "VMoBA: Mixture-of-Block Attention for Video Diffusion Models", by the names of FastVideo; apart
from it the selection is made for each sample by itself, and the first steps and layers that it speaks of are full.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from difftool.acceleration.attention import varlen
from difftool.acceleration.attention.chunks import SIZE, Chunks
from difftool.acceleration.attention.kernels import flex_attention, masked_error
from difftool.acceleration.attention.video import Video, mask_of_blocks, options
from difftool.attention import FLEX
from difftool.errors import PlanError
from difftool.parallel.seam import Kernel, TorchKernel

VMOBA = "vmoba_attn"
AT_ONCE = 2**26  # places x chunks of the heads that are computed together, where each chooses by itself
MOST = 2**31 - 1  # of them that a kernel can count
EPS = 1e-6  # likeness that counts as none, as FastVideo has it
# the dims of [B, H, V, C] likenesses that each choose by themselves; the others share one choice
SCOPES: Mapping[str, tuple[int, ...]] = {
    "query_head": (0, 1, 2),
    "head_global": (0, 1),
    "block": (0, 3),
    "overall": (0,),
}
# the part of a layer -> the sides of a video that its chunks cut: 0 frames, 1 rows, 2 columns
PARTS: Mapping[str, tuple[int, ...]] = {"temporal": (0,), "spatial": (1, 2), "st": (0, 1, 2)}


@dataclass(frozen=True)
class Rule:
    """How chunks are chosen: the `topk` most alike, or the fewest whose share of all likeness reaches `threshold`; of
    each query alone or together with others, by `scope`.
    """

    mode: str
    scope: str
    topk: int | None
    threshold: float


def choose(likeness: Tensor, own: Tensor, rule: Rule) -> Tensor:
    """[B, H, V, C] of queries and chunks, [V, C] whose own chunk it is -> which each query sees, bool [B, H, V, C]."""
    apart = SCOPES[rule.scope]
    order = (*apart, *(dim for dim in range(4) if dim not in apart))
    ranked, its_own = (each.permute(order).flatten(len(apart)) for each in (likeness, own.expand(likeness.shape)))
    if rule.mode == "topk":
        assert rule.topk is not None
        chunks = likeness.shape[3]
        chosen = most_alike(ranked, its_own, min(rule.topk, chunks) * ranked.shape[-1] // chunks)
    else:
        chosen = enough_alike(ranked, its_own, rule.threshold)
    shaped = chosen.view([likeness.shape[dim] for dim in order])
    return shaped.permute([order.index(dim) for dim in range(4)])


def most_alike(likeness: Tensor, own: Tensor, kept: int) -> Tensor:
    """[.., M] -> so many of each row: those that are one's own first."""
    first = likeness.masked_fill(own, math.inf).topk(kept, sorted=False).indices
    return torch.zeros_like(own).scatter(-1, first, value=True)


def enough_alike(likeness: Tensor, own: Tensor, threshold: float) -> Tensor:
    """[.., M] -> those of each row that are one's own, and the most alike of the others until their share of all
    likeness, counted from the least of the row, reaches the threshold: one of them at least.
    """
    least, most = likeness.aminmax(dim=-1, keepdim=True)
    span = (most - least).where(most - least > EPS, 1.0)
    share = (likeness - least) / span
    # fp64: fp32 loses what it adds to a sum of millions
    wanted = threshold * (share.sum(-1, keepdim=True, dtype=torch.float64) + EPS)
    missing = (wanted - (share * own).sum(-1, keepdim=True, dtype=torch.float64)).clamp(min=0)
    others, order = share.masked_fill(own, 0.0).sort(dim=-1, descending=True, stable=True)
    taken = pad(others.cumsum(-1, dtype=torch.float64)[..., :-1] < missing, (1, 0), value=True)
    return own | torch.zeros_like(own).scatter(-1, order, taken)


# (queries, keys and values [B, H, N x SIZE, D], bool [B, H, N x SIZE, C + 2] which groups each place sees, the chunks,
# the scale of the scores) -> [B, H, N x SIZE, D], and how many blocks were visited
Compute = Callable[[Tensor, Tensor, Tensor, Tensor, Chunks, float | None], tuple[Tensor, Tensor]]


def by_flex(
    query: Tensor, key: Tensor, value: Tensor, choice: Tensor, chunks: Chunks, scale: float | None
) -> tuple[Tensor, Tensor]:
    """FlexAttention's, in blocks of SIZE x SIZE."""
    seen, whole = blocks_of(choice, chunks)
    mask = mask_of_blocks(seen, whole, SIZE, visible_by(choice, chunks.group))
    out = flex_attention(query, key, value, block_mask=mask, scale=scale, kernel_options=options(SIZE))
    return out, seen.sum()


@dataclass(frozen=True)
class MobaKernel:
    """Attention of each query to the chunks that `rule` chooses, as `compute` does it. `cuts` are the tokens of a chunk
    along each side, None for all of them. The first `full_steps` steps are full.
    """

    video: Video
    cuts: tuple[int | None, int | None, int | None]
    rule: Rule
    full_steps: float
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
            raise masked_error(VMOBA)
        frames, rows, columns = (min(by or side, side) for by, side in zip(self.cuts, self.video.grid, strict=True))
        chunks = self.video.layout(Chunks, (frames, rows, columns), query)
        if self.video.step < self.full_steps:
            self.video.count(chunks.blocks(query), chunks.blocks(query))
            return TorchKernel()(query, key, value, scale=scale)
        heads = self._heads_at_once(query, chunks)
        parts = zip(*(tensor.split(heads, dim=2) for tensor in (query, key, value)), strict=True)
        return torch.cat([self._attend(*part, chunks, scale) for part in parts], dim=2)

    def with_lse(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError(f"{VMOBA} tells no log-sum-exp")

    def _heads_at_once(self, query: Tensor, chunks: Chunks) -> int:
        """How many of [B, S, H, D] are computed together. Raises PlanError where all must be, and are too many."""
        each = len(query) * len(chunks.order) * len(chunks.touched)
        heads = query.shape[2]
        if 1 in SCOPES[self.rule.scope]:
            return min(heads, max(1, AT_ONCE // each))
        if each * heads > MOST:
            raise PlanError(
                f"attention {VMOBA}: {heads} heads of {chunks.tokens} tokens choose among {len(chunks.sizes)} chunks "
                f"together, with moba_threshold_type={self.rule.scope}, which is more than a kernel can count",
                hint="use moba_threshold_type=query_head, or larger chunks",
            )
        return heads

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, chunks: Chunks, scale: float | None) -> Tensor:
        means = chunks.means(key)
        packed = [tensor[:, chunks.order].transpose(1, 2) for tensor in (query, key, value)]
        choice = choices(packed[0], means, chunks, self.rule)
        out, visited = self.compute(packed[0], packed[1], packed[2], choice, chunks, scale)
        self.video.count(visited, chunks.blocks(query))
        return out[:, :, chunks.place].transpose(1, 2)


def choices(packed: Tensor, means: Tensor, chunks: Chunks, rule: Rule) -> Tensor:
    """[B, H, N x SIZE, D] queries, [B, H, C, D] mean keys -> which group each place sees, bool [B, H, N x SIZE, C + 2]:
    the place of a copy what its token does.
    """
    video, last = chunks.tokens, chunks.tokens + chunks.others
    own = chunks.group[:video, None] == torch.arange(means.shape[2], device=means.device)
    likeness = packed[:, :, :video].float() @ means.transpose(2, 3)
    found = torch.ones(*packed.shape[:3], len(chunks.touched), dtype=torch.bool, device=packed.device)
    found[:, :, :video, :-2] = choose(likeness, own, rule)
    found[..., -1] = False
    found[:, :, last:] = found[:, :, last - 1 : last]
    return found


def blocks_of(choice: Tensor, chunks: Chunks) -> tuple[Tensor, Tensor]:
    """bool [B, H, N x SIZE, C + 2] -> which blocks each block sees, and sees all of: [B, H, N, N] each."""
    blocks = choice.unflatten(2, (-1, SIZE))
    seen = blocks.any(3).float() @ chunks.touched > 0
    in_part = (~blocks.all(3)).float() @ chunks.touched > 0
    return seen, seen & ~in_part


def visible_by(choice: Tensor, group: Tensor) -> Callable[..., Tensor]:
    """FlexAttention's question of a query and a key."""

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return choice[b, h, i, group[j]]

    return visible


def moba_kernels(config: Mapping[str, Any], video: Video, layers: int, kernel: str = FLEX) -> list[Kernel]:
    """Those of so many layers, by a recipe's `moba_config`. Raises PlanError where all of them are full."""
    first = config["first_full_layer"]
    if first >= layers:
        raise PlanError(f"moba_config.first_full_layer={first} leaves none of {layers} layers; lower it")
    cycle = [part for part in PARTS for _ in range(config[f"{part}_layer"])]
    turns = [cycle[(layer - first) % len(cycle)] for layer in range(layers)]
    steps = [math.inf if layer < first else config["first_full_step"] for layer in range(layers)]
    return [
        MobaKernel(video, *_part(config, part), full, COMPUTE[kernel]) for part, full in zip(turns, steps, strict=True)
    ]


def _part(config: Mapping[str, Any], part: str) -> tuple[tuple[int | None, int | None, int | None], Rule]:
    said = config[f"{part}_chunk_size"]
    by_side = dict(zip(PARTS[part], [said] if isinstance(said, int) else said, strict=True))
    rule = Rule(
        config["moba_select_mode"], config["moba_threshold_type"], config[f"{part}_topk"], config["moba_threshold"]
    )
    return (by_side.get(0), by_side.get(1), by_side.get(2)), rule


COMPUTE: Mapping[str, Compute] = {FLEX: by_flex, "varlen": varlen.compute}

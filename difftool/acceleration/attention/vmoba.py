"""VMoBA: each query of a video sees the chunks of it whose mean key is most like it, its own chunk always.

Layers take turns with chunks of frames (temporal), of rows and columns (spatial) and of all three (st). Tokens are put
chunk by chunk, and FlexAttention's blocks are laid over them: a block is visited where any query in it sees any chunk
in the other, and looked into token by token unless all queries see all of it. Tokens beside the video see all and are
seen by all. At the sides of a video that a chunk does not divide, the last one is smaller.

Legend: B samples, S tokens, V those of the video, H heads, D head width, C chunks, N blocks of SIZE places.
Source: Wu et al. 2025, "VMoBA: Mixture-of-Block Attention for Video Diffusion Models", by the names of FastVideo; apart
from it the selection is made for each sample by itself, and the first steps and layers that it speaks of are full.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from difftool.acceleration.attention.kernels import flex_attention, masked_error
from difftool.acceleration.attention.video import Grid, Video, mask_of_blocks, options
from difftool.errors import PlanError
from difftool.parallel.seam import Kernel, TorchKernel

VMOBA = "vmoba_attn"
SIZE = 64  # places of a block, as those of VSA's cubes
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
        frames, rows, columns = (math.ceil(side / by) for side, by in zip(self.grid, self.chunk, strict=True))
        return frames, rows, columns

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

    def means(self, key: Tensor) -> Tensor:
        """[B, S, H, D] -> fp32 [B, H, C, D], the mean of each chunk's tokens."""
        whole = [side for by, count in zip(self.chunk, self.counts, strict=True) for side in (count, by)]
        gaps = [by * count - side for side, by, count in zip(self.grid, self.chunk, self.counts, strict=True)]
        video = key[:, : self.tokens].unflatten(1, self.grid)
        video = pad(video, (0, 0, 0, 0, 0, gaps[2], 0, gaps[1], 0, gaps[0]))
        cut = video.reshape(len(key), *whole, *key.shape[2:])
        sums = cut.sum((2, 4, 6), dtype=torch.float32).flatten(1, 3).transpose(1, 2)
        return sums / self.sizes[:, None]


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


@dataclass(frozen=True)
class MobaKernel:
    """Attention of each query to the chunks that `rule` chooses. `cuts` are the tokens of a chunk along each side, None
    for all of them. The first `full_steps` steps are full.
    """

    video: Video
    cuts: tuple[int | None, int | None, int | None]
    rule: Rule
    full_steps: float

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
            blocks = query.shape[0] * query.shape[2] * chunks.touched.shape[1] ** 2
            self.video.count(blocks, blocks)
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
        seen, whole = blocks_of(choice, chunks)
        self.video.count(seen.sum(), seen.numel())
        mask = mask_of_blocks(seen, whole, SIZE, visible_by(choice, chunks.group))
        out = flex_attention(*packed, block_mask=mask, scale=scale, kernel_options=options(SIZE))
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


def moba_kernels(config: Mapping[str, Any], video: Video, layers: int) -> list[Kernel]:
    """Those of so many layers, by a recipe's `moba_config`. Raises PlanError where all of them are full."""
    first = config["first_full_layer"]
    if first >= layers:
        raise PlanError(f"moba_config.first_full_layer={first} leaves none of {layers} layers; lower it")
    cycle = [part for part in PARTS for _ in range(config[f"{part}_layer"])]
    turns = [cycle[(layer - first) % len(cycle)] for layer in range(layers)]
    return [
        MobaKernel(video, *_part(config, part), math.inf if layer < first else config["first_full_step"])
        for layer, part in enumerate(turns)
    ]


def _part(config: Mapping[str, Any], part: str) -> tuple[tuple[int | None, int | None, int | None], Rule]:
    said = config[f"{part}_chunk_size"]
    by_side = dict(zip(PARTS[part], [said] if isinstance(said, int) else said, strict=True))
    rule = Rule(
        config["moba_select_mode"], config["moba_threshold_type"], config[f"{part}_topk"], config["moba_threshold"]
    )
    return (by_side.get(0), by_side.get(1), by_side.get(2)), rule

"""Training machinery of `train_shapes.py`: processes that share a batch, the optimiser, the moving average."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Rank:
    """Which of how many processes this one is."""

    index: int
    count: int

    def mean_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Averages the gradients over the processes, as one flat message."""
        if self.count == 1:
            return
        flat = torch.cat([p.grad.reshape(-1) for p in parameters])
        dist.all_reduce(flat)
        flat /= self.count
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad.copy_(part.view_as(p))


class Average:
    """Exponential moving average of parameters, with a short warm-up."""

    def __init__(self, modules: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self.values = {k: v.detach().clone() for k, v in modules.state_dict().items()}

    def update(self, modules: nn.Module) -> None:
        self.steps += 1
        keep = min(self.decay, self.steps / (self.steps + 10))
        for key, value in modules.state_dict().items():
            if value.is_floating_point():
                self.values[key].lerp_(value.detach(), 1 - keep)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton-Schulz, for 2D weights; the matrices are dealt to the processes.

    fp32, unlike torch.optim.Muon: bf16 products crawl on CPUs without AMX. Source: Jordan et al. 2024; the update's
    scale 0.2 * sqrt(max dim) is Moonlight's.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, rank: Rank):
        super().__init__(parameters, {"lr": lr, "momentum": 0.95, "weight_decay": 0.01})
        self.rank = rank

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        group = self.param_groups[0]
        updates = []
        for i, p in enumerate(group["params"]):
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 1 - group["momentum"])
            mine = i % self.rank.count == self.rank.index
            nesterov = p.grad.lerp(momentum, group["momentum"])
            updates.append(orthogonal(nesterov) if mine else torch.zeros_like(p))
        flat = torch.cat([u.reshape(-1) for u in updates])
        if self.rank.count > 1:
            dist.all_reduce(flat)
        for p, u in zip(group["params"], flat.split([u.numel() for u in updates]), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(u.view_as(p), alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))


def orthogonal(g: Tensor, steps: int = 4) -> Tensor:
    """[m, n] -> the nearest matrix with orthonormal rows or columns, roughly."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def plain_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
    """Softmax attention as three matrix products: on CPU the fused backward is slow for 28 tokens."""
    weights = query @ key.transpose(-2, -1) * (scale or query.shape[-1] ** -0.5)
    if is_causal:
        weights = weights.masked_fill(torch.ones(weights.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    if attn_mask is not None:
        weights = weights.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else weights + attn_mask
    return weights.softmax(-1) @ value


@contextmanager
def training_attention() -> Iterator[None]:
    """Training only: inference keeps the stock kernel."""
    stock, F.scaled_dot_product_attention = F.scaled_dot_product_attention, plain_attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = stock

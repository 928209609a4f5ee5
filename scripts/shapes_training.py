"""Training machinery of `train_shapes.py`: settings, the loop with its checkpoints, the optimiser, the average."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

CHECKPOINT_S = 60  # seconds of work that an interruption may cost


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights; written next to them."""

    seed: int
    vae_crop_steps: int
    vae_crop_batch: int
    vae_steps: int
    vae_batch: int
    vae_lr: float
    latent_samples: int
    steps: int
    batch: int
    lr: float
    decoder_steps: int
    decoder_batch: int
    decoder_lr: float = 1e-3
    decoder_noise: float = 0.2
    caption_dropout: float = 0.1
    compose_steps: int = 0
    compose_lr: float = 1.5e-3
    compose_omission: float = 0.0


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


def fit(
    name: str,
    out: Path,
    rank: Rank,
    *,
    steps: int,
    modules: nn.Module,
    optimisers: list[torch.optim.Optimizer],
    rate: Callable[[int], float],
    loss_at: Callable[[int], Tensor],
    decay: float,
) -> None:
    """Runs one stage's steps, with a checkpoint every minute and the averaged weights at the end."""
    average, start, path = Average(modules, decay), 0, out / f"{name}.ckpt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        modules.load_state_dict(saved["modules"])
        for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        average.values, average.steps, start = saved["average"], saved["step"], saved["step"]
    base = [o.param_groups[0]["lr"] if start == 0 else o.defaults["lr"] for o in optimisers]
    parameters = [p for p in modules.parameters() if p.requires_grad]
    began = saved_at = time.monotonic()
    smooth = None
    for step in range(start, steps):
        for optimiser, lr in zip(optimisers, base, strict=True):
            optimiser.param_groups[0]["lr"] = lr * rate(step)
        loss = loss_at(step)
        loss.backward()
        rank.mean_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        average.update(modules)
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if rank.index == 0 and (step % 100 == 0 or step == steps - 1):
            print(f"{name} step {step + 1}/{steps} loss {smooth:.4f} {time.monotonic() - began:.0f} s", flush=True)
        if rank.index == 0 and time.monotonic() - saved_at >= CHECKPOINT_S:
            saved_at = time.monotonic()
            state = {"modules": modules.state_dict(), "optimisers": [o.state_dict() for o in optimisers]}
            torch.save({**state, "average": average.values, "step": step + 1}, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
    modules.load_state_dict(average.values)
    if rank.index == 0:
        torch.save(modules.state_dict(), out / f"{name}.pt")
        path.unlink(missing_ok=True)


def linear_decay(steps: int, warmup: int = 100, hold: float = 0.0) -> Callable[[int], float]:
    """Warm-up, then constant for a share of the steps, then linear to zero."""
    return lambda k: min(1.0, (k + 1) / warmup) * min(1.0, (steps - k) / (steps * (1 - hold)))


def reconstruction_loss(out: Tensor, x: Tensor) -> Tensor:
    """L1 + 2 MSE + half the L1 of the finite differences, both [..., H, W]."""
    gradients = sum((out.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (-2, -1))
    return (out - x).abs().mean() + 2 * (out - x).square().mean() + 0.5 * gradients


def omit_words(
    ids: Tensor, tokenizer: Any, groups: Sequence[Sequence[str]], share: float, rng: np.random.Generator
) -> Tensor:
    """[B, L] token ids with the words of each group left out of `share` of the rows, closed up and padded.

    Each word is one token.
    """
    if share == 0:
        return ids
    keep = torch.ones_like(ids, dtype=torch.bool)
    for group in groups:
        words = torch.tensor([tokenizer(word, add_special_tokens=False).input_ids[0] for word in group])
        keep &= ~(torch.isin(ids, words) & torch.from_numpy(rng.random(len(ids)) < share)[:, None])
    order = torch.argsort((~keep).int(), dim=1, stable=True)
    return ids.gather(1, order).masked_fill(~keep.gather(1, order), tokenizer.pad_token_id)


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

"""Trains `builtin:shapes-image` from nothing: a FLUX.1-layout checkpoint that draws one captioned shape.

    python scripts/train_shapes.py --out runs/shapes --procs 2

Six stages, each seeded and resumable (run the same command again): `vae`, `latents`, `decoder` (the VAE's decoder
alone, on noisy latents), `transformer` (with both text encoders), `compose` (on from there, with words left out of
captions), `export`. Step k draws its data from (seed, stage, k, rank), so a resumed run continues exactly. `--procs`
splits every batch over processes of one thread each.
Shapes: B batch, C latent channels, S image tokens, D token width.
"""

import argparse
import ctypes
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from shapes_model import build_text, build_transformer, build_vae, export_pipeline, pack, rope_ids, tokenise
from shapes_training import Average, Muon, Rank, training_attention
from torch import Tensor, nn

from difftool.builtin.shapes import COLOURS, SHAPES, SIDE, Scene, render, scenes

CHECKPOINT_S = 60  # seconds of work that an interruption may cost
STAGES = ("vae", "latents", "decoder", "transformer", "compose", "export")


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights; written next to them."""

    seed: int = 20261121
    vae_crop_steps: int = 700
    vae_crop_batch: int = 48
    vae_steps: int = 8000
    vae_batch: int = 8
    vae_lr: float = 2e-3
    latent_images: int = 40_000
    steps: int = 3200
    batch: int = 128
    lr: float = 2.5e-3
    caption_dropout: float = 0.1
    compose_steps: int = 1600
    compose_lr: float = 1.5e-3
    compose_omission: float = 0.3
    decoder_steps: int = 2500
    decoder_batch: int = 16
    decoder_lr: float = 1e-3
    decoder_noise: float = 0.2


def rng_for(settings: Settings, stage: str, step: int, rank: Rank) -> np.random.Generator:
    return np.random.default_rng([settings.seed, STAGES.index(stage), step, rank.index])


def draw(rng: np.random.Generator, count: int, pool: list[Scene]) -> tuple[list[Scene], Tensor]:
    """`count` training scenes and their pictures [B, 3, H, W] in [-1, 1]."""
    chosen = [pool[i] for i in rng.integers(len(pool), size=count)]
    pictures = np.stack([render(scene, rng) for scene in chosen])
    return chosen, torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def reconstruction_loss(out: Tensor, x: Tensor) -> Tensor:
    """L1 + 2 MSE + half the L1 of the finite differences."""
    gradients = sum((out.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
    return (out - x).abs().mean() + 2 * (out - x).square().mean() + 0.5 * gradients


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


def train_vae(out: Path, s: Settings, rank: Rank) -> None:
    """Small crops first (sharp edges are cheap to learn there), then whole pictures."""
    torch.manual_seed(s.seed)
    vae, pool = build_vae(), scenes(held_out=False)
    total = s.vae_crop_steps + s.vae_steps

    def loss_at(step: int) -> Tensor:
        rng = rng_for(s, "vae", step, rank)
        crops = step < s.vae_crop_steps
        _, x = draw(rng, (s.vae_crop_batch if crops else s.vae_batch) // rank.count, pool)
        if crops:
            corners = rng.integers(0, SIDE // 2 + 1, size=(len(x), 2))
            x = torch.stack([p[:, i : i + SIDE // 2, j : j + SIDE // 2] for p, (i, j) in zip(x, corners, strict=True)])
        posterior = vae.encode(x).latent_dist
        noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, dtype=np.float32))
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        return reconstruction_loss(decoded, x) + 3e-4 * posterior.kl().mean() / posterior.mean[0].numel()

    optimiser = torch.optim.AdamW(vae.parameters(), lr=s.vae_lr, fused=True)
    fit(
        "vae",
        out,
        rank,
        steps=total,
        modules=vae,
        optimisers=[optimiser],
        rate=linear_decay(total, hold=0.2),
        loss_at=loss_at,
        decay=0.998,
    )


@torch.no_grad()
def cache_latents(out: Path, s: Settings, rank: Rank) -> None:
    """Encodes training pictures once: latents [N, C, H, W], token ids of both encoders, and their mean and scale."""
    vae, pool = build_vae(), scenes(held_out=False)
    vae.load_state_dict(torch.load(out / "vae.pt", weights_only=True))
    _, clip_tokenizer, t5_tokenizer = build_text()
    latents, captions = [], []
    for step in range(s.latent_images // rank.count // 50):
        rng = rng_for(s, "latents", step, rank)
        chosen, x = draw(rng, 50, pool)
        latents.append(vae.encode(x).latent_dist.mean)
        captions += [c.caption(name_background=c.background != "white" or rng.random() > 0.3) for c in chosen]
    z = torch.cat(latents)
    torch.save({"latents": z, **tokenise(captions, clip_tokenizer, t5_tokenizer)}, out / f"latents-{rank.index}.pt")
    if rank.index == 0:
        (out / "latents.json").write_text(json.dumps({"shift": z.mean().item(), "scale": 1 / z.std().item()}))


def train_transformer(out: Path, s: Settings, rank: Rank) -> None:
    """Flow matching on whole captions."""
    fit_flow(out, s, rank, stage="transformer", steps=s.steps, lr=s.lr, hold=0.4, omission=0.0)


def train_composition(out: Path, s: Settings, rank: Rank) -> None:
    """Flow matching on, from `transformer`'s weights, with words left out of captions.

    A colour or a shape that is missing from what one encoder reads must come from the other words, so that no
    combination can be learnt as a whole: without this, held-out ones turn into their nearest neighbour in training.
    """
    fit_flow(
        out, s, rank, stage="compose", steps=s.compose_steps, lr=s.compose_lr, hold=0.0, omission=s.compose_omission
    )


def fit_flow(
    out: Path, s: Settings, rank: Rank, *, stage: str, steps: int, lr: float, hold: float, omission: float
) -> None:
    """Flow matching: the model predicts noise - x0 at x_t = (1 - t) x0 + t noise. Source: Esser et al. 2024."""
    torch.manual_seed(s.seed + 1)
    text, clip_tokenizer, t5_tokenizer = build_text()
    modules = nn.ModuleDict({"transformer": build_transformer(), **text}).train()
    if stage == "compose":
        modules.load_state_dict(torch.load(out / "transformer.pt", weights_only=True))
    words = {"clip": attribute_ids(clip_tokenizer), "t5": attribute_ids(t5_tokenizer)}
    pads = {"clip": clip_tokenizer.pad_token_id, "t5": t5_tokenizer.pad_token_id}
    saved, stats = torch.load(out / f"latents-{rank.index}.pt"), json.loads((out / "latents.json").read_text())
    x0_all = pack((saved["latents"] - stats["shift"]) * stats["scale"])
    empty = tokenise([""], clip_tokenizer, t5_tokenizer)
    image_ids, text_ids = rope_ids(saved["t5"].shape[1])
    count = s.batch // rank.count

    def loss_at(step: int) -> Tensor:
        rng = rng_for(s, stage, step, rank)
        rows = torch.from_numpy(rng.integers(len(x0_all), size=count))
        dropped = torch.from_numpy(rng.random(count) < s.caption_dropout)[:, None]
        t5_ids, clip_ids = (
            torch.where(dropped, empty[k], omit_words(saved[k][rows], words[k], pads[k], omission, rng))
            for k in ("t5", "clip")
        )
        x0 = x0_all[rows]
        noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
        t = torch.from_numpy(rng.normal(0.3, 1.2, count).astype(np.float32)).sigmoid()
        xt = torch.lerp(x0, noise, t[:, None, None])
        predicted = modules["transformer"](
            hidden_states=xt,
            timestep=t,
            encoder_hidden_states=modules["text_encoder_2"](t5_ids)[0],
            pooled_projections=modules["text_encoder"](clip_ids).pooler_output,
            img_ids=image_ids,
            txt_ids=text_ids,
            return_dict=False,
        )[0]
        return (predicted - (noise - x0)).square().mean()

    matrices = [p for n, p in modules["transformer"].named_parameters() if "blocks" in n and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in modules.parameters() if id(p) not in chosen]
    optimisers = [Muon(matrices, lr, rank), torch.optim.AdamW(others, lr, betas=(0.9, 0.98), fused=True)]
    with training_attention():
        fit(
            stage,
            out,
            rank,
            steps=steps,
            modules=modules,
            optimisers=optimisers,
            rate=linear_decay(steps, hold=hold),
            loss_at=loss_at,
            decay=0.998,
        )


def attribute_ids(tokenizer: Any) -> list[Tensor]:
    """Token ids of the colours, and of the shapes; each word is one token."""
    return [
        torch.tensor([tokenizer(word, add_special_tokens=False).input_ids[0] for word in group])
        for group in (COLOURS, SHAPES)
    ]


def omit_words(ids: Tensor, groups: list[Tensor], pad: int, share: float, rng: np.random.Generator) -> Tensor:
    """[B, L] token ids with the words of each group left out of `share` of the rows, closed up and padded."""
    if share == 0:
        return ids
    keep = torch.ones_like(ids, dtype=torch.bool)
    for group in groups:
        keep &= ~(torch.isin(ids, group) & torch.from_numpy(rng.random(len(ids)) < share)[:, None])
    order = torch.argsort((~keep).int(), dim=1, stable=True)
    return ids.gather(1, order).masked_fill(~keep.gather(1, order), pad)


def train_decoder(out: Path, s: Settings, rank: Rank) -> None:
    """The decoder learns to forgive small errors of the latents; the encoder is fixed, so latents stay valid."""
    torch.manual_seed(s.seed + 2)
    vae, pool = build_vae(), scenes(held_out=False)
    vae.load_state_dict(torch.load(out / "vae.pt", weights_only=True))
    vae.encoder.requires_grad_(False)
    spread = 1 / json.loads((out / "latents.json").read_text())["scale"]

    def loss_at(step: int) -> Tensor:
        rng = rng_for(s, "decoder", step, rank)
        _, x = draw(rng, s.decoder_batch // rank.count, pool)
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mean
        level = rng.uniform(0, s.decoder_noise * spread, (len(x), 1, 1, 1)).astype(np.float32)
        noise = torch.from_numpy(level * rng.standard_normal(z.shape, dtype=np.float32))
        return reconstruction_loss(vae.decode(z + noise).sample, x)

    optimiser = torch.optim.AdamW(vae.decoder.parameters(), lr=s.decoder_lr, fused=True)
    fit(
        "decoder",
        out,
        rank,
        steps=s.decoder_steps,
        modules=vae,
        optimisers=[optimiser],
        rate=linear_decay(s.decoder_steps),
        loss_at=loss_at,
        decay=0.99,
    )


def export(out: Path, s: Settings, rank: Rank) -> None:
    """Writes the bf16 FluxPipeline folder with its sampling defaults."""
    if rank.index == 0:
        export_pipeline(out, out / "shapes-image", asdict(s))


WORK = {
    "vae": train_vae,
    "latents": cache_latents,
    "decoder": train_decoder,
    "transformer": train_transformer,
    "compose": train_composition,
    "export": export,
}
DONE = {
    "vae": "vae.pt",
    "latents": "latents.json",
    "decoder": "decoder.pt",
    "transformer": "transformer.pt",
    "compose": "compose.pt",
    "export": "shapes-image/model_index.json",
}


def run(index: int, count: int, out: Path, settings: Settings, stages: list[str]) -> None:
    libc = ctypes.CDLL("libc.so.6")  # glibc returns big blocks to the kernel at once: three times slower convolutions
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):
        libc.mallopt(option, value)
    torch.set_num_threads(1)
    if count > 1:
        dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=index, world_size=count)
    for stage in stages:
        if not (out / DONE[stage]).exists():
            began = time.process_time()
            WORK[stage](out, settings, Rank(index, count))
            if index == 0:
                print(f"{stage} done in {time.process_time() - began:.0f} cpu-s per process", flush=True)
        if count > 1:
            dist.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the result")
    parser.add_argument("--procs", type=int, default=1, help="processes that share every batch")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    out, procs, stages = (given.pop(key) for key in ("out", "procs", "stages"))
    out.mkdir(parents=True, exist_ok=True)
    out = out.resolve()
    (out / "rendezvous").unlink(missing_ok=True)
    settings = Settings(**given)
    if procs == 1:
        run(0, 1, out, settings, stages)
    else:
        torch.multiprocessing.spawn(run, (procs, out, settings, stages), nprocs=procs)


if __name__ == "__main__":
    main()

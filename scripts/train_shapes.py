"""Trains a built-in model from nothing: it draws one captioned shape, in a picture or, moving, in a clip.

    python scripts/train_shapes.py --model shapes-image --out runs/shapes-image --procs 2

Six stages, each seeded and resumable (run the same command again): `vae`, `latents`, `decoder` (the VAE's decoder
alone, on noisy latents), `transformer` (with its text encoders), `compose` (on from there, with words left out of
captions), `export`. Step k draws its data from (seed, stage, k, rank), so a resumed run continues exactly. `--procs`
splits every batch over processes of one thread each.
Shapes: B batch, C latent channels, ... stands for H, W of pictures and T, H, W of clips.
"""

import argparse
import ctypes
import json
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from shapes_image_model import ImageModel
from shapes_training import (
    Muon,
    Rank,
    Settings,
    fit,
    linear_decay,
    omit_words,
    reconstruction_loss,
    training_attention,
)
from shapes_video_model import VideoModel
from torch import Tensor, nn

MODELS: dict[str, type[Any]] = {"shapes-image": ImageModel, "shapes-video": VideoModel}
STAGES = ("vae", "latents", "decoder", "transformer", "compose", "export")
ENCODING_BATCH = 50


@dataclass(frozen=True)
class Job:
    """One process's share of a training."""

    model: Any
    out: Path
    settings: Settings
    rank: Rank

    def rng(self, stage: str, step: int) -> np.random.Generator:
        return np.random.default_rng([self.settings.seed, STAGES.index(stage), step, self.rank.index])

    def draw(self, rng: np.random.Generator, count: int) -> tuple[list[Any], Tensor]:
        """`count` training scenes and their pictures or clips [B, 3, ...] in [-1, 1]."""
        chosen = [self.model.pool[i] for i in rng.integers(len(self.model.pool), size=count)]
        drawn = np.stack([self.model.render(scene, rng) for scene in chosen])
        return chosen, torch.from_numpy(drawn).movedim(-1, 1).float() / 127.5 - 1

    def load(self, module: nn.Module, stage: str) -> nn.Module:
        module.load_state_dict(torch.load(self.out / f"{stage}.pt", weights_only=True))
        return module

    def stats(self) -> dict[str, list[float]]:
        """Mean and standard deviation of the latents, [C] or [1] each."""
        return json.loads((self.out / "latents.json").read_text())


def by_channel(values: list[float], like: Tensor) -> Tensor:
    """[C] or [1] values, to go with [B, C, ...]."""
    return torch.tensor(values).view(1, -1, *[1] * (like.ndim - 2))


def by_sample(values: np.ndarray, like: Tensor) -> Tensor:
    """[B] values, to go with [B, C, ...]."""
    return torch.from_numpy(values.astype(np.float32)).view(-1, *[1] * (like.ndim - 1))


def train_vae(job: Job) -> None:
    """Cheap cuttings first, then whole pictures or clips."""
    s, rank = job.settings, job.rank
    torch.manual_seed(s.seed)
    vae = job.model.build_vae()
    total = s.vae_crop_steps + s.vae_steps

    def loss_at(step: int) -> Tensor:
        rng = job.rng("vae", step)
        crops = step < s.vae_crop_steps
        _, x = job.draw(rng, (s.vae_crop_batch if crops else s.vae_batch) // rank.count)
        if crops:
            x = job.model.crop(x, rng)
        posterior = job.model.encode(vae, x)
        noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, dtype=np.float32))
        decoded = job.model.decode(vae, posterior.mean + posterior.std * noise)
        divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return reconstruction_loss(decoded, x) + 3e-4 * divergence

    optimiser = torch.optim.AdamW(vae.parameters(), lr=s.vae_lr, fused=True)
    rate = linear_decay(total, hold=0.2)
    fit("vae", job.out, rank, steps=total, modules=vae, optimisers=[optimiser], rate=rate, loss_at=loss_at, decay=0.998)


@torch.no_grad()
def cache_latents(job: Job) -> None:
    """Encodes training pictures once: latents [N, C, ...], token ids of each tokenizer, and the latents' statistics."""
    vae = job.load(job.model.build_vae(), "vae")
    latents, captions = [], []
    for step in range(job.settings.latent_samples // job.rank.count // ENCODING_BATCH):
        rng = job.rng("latents", step)
        chosen, x = job.draw(rng, ENCODING_BATCH)
        latents.append(job.model.encode(vae, x).mean)
        captions += [c.caption(name_background=c.background != "white" or rng.random() > 0.3) for c in chosen]
    z = torch.cat(latents)
    torch.save({"latents": z, **job.model.tokenise(captions)}, job.out / f"latents-{job.rank.index}.pt")
    if job.rank.index == 0:
        std, mean = torch.std_mean(z, dim=job.model.stat_dims)
        stored = {"mean": mean.reshape(-1).tolist(), "std": std.reshape(-1).tolist()}
        (job.out / "latents.json").write_text(json.dumps(stored))


def train_decoder(job: Job) -> None:
    """The decoder learns to forgive small errors of the latents; the encoder is fixed, so latents stay valid."""
    s, rank = job.settings, job.rank
    torch.manual_seed(s.seed + 2)
    vae = job.load(job.model.build_vae(), "vae")
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    spread = job.stats()["std"]

    def loss_at(step: int) -> Tensor:
        rng = job.rng("decoder", step)
        _, x = job.draw(rng, s.decoder_batch // rank.count)
        with torch.no_grad():
            z = job.model.encode(vae, x).mean
        level = by_sample(rng.uniform(0, s.decoder_noise, len(x)), z) * by_channel(spread, z)
        noise = torch.from_numpy(rng.standard_normal(z.shape, dtype=np.float32))
        return reconstruction_loss(job.model.decode(vae, z + level * noise), x)

    optimiser = torch.optim.AdamW(vae.decoder.parameters(), lr=s.decoder_lr, fused=True)
    fit(
        "decoder",
        job.out,
        rank,
        steps=s.decoder_steps,
        modules=vae,
        optimisers=[optimiser],
        rate=linear_decay(s.decoder_steps),
        loss_at=loss_at,
        decay=0.99,
    )


def train_transformer(job: Job) -> None:
    """Flow matching on whole captions."""
    s = job.settings
    fit_flow(job, stage="transformer", steps=s.steps, lr=s.lr, hold=0.4, omission=0.0)


def train_composition(job: Job) -> None:
    """Flow matching on, from `transformer`'s weights, with words left out of captions.

    A word that is missing from what one encoder reads must not matter to what the other words mean, so that no
    combination can be learnt as a whole: without this, held-out ones turn into their nearest neighbour in training.
    """
    s = job.settings
    fit_flow(job, stage="compose", steps=s.compose_steps, lr=s.compose_lr, hold=0.0, omission=s.compose_omission)


def fit_flow(job: Job, *, stage: str, steps: int, lr: float, hold: float, omission: float) -> None:
    """Flow matching: the model predicts noise - x0 at x_t = (1 - t) x0 + t noise. Source: Esser et al. 2024."""
    s, model = job.settings, job.model
    torch.manual_seed(s.seed + 1)
    modules = model.build_modules().train()
    if stage == "compose":
        job.load(modules, "transformer")
    saved, stats = torch.load(job.out / f"latents-{job.rank.index}.pt"), job.stats()
    z = saved.pop("latents")
    x0_all = (z - by_channel(stats["mean"], z)) / by_channel(stats["std"], z)
    empty, count = model.tokenise([""]), s.batch // job.rank.count

    def loss_at(step: int) -> Tensor:
        rng = job.rng(stage, step)
        rows = torch.from_numpy(rng.integers(len(x0_all), size=count))
        dropped = torch.from_numpy(rng.random(count) < s.caption_dropout)[:, None]
        ids = {}
        for name, tokenizer in model.tokenizers.items():
            kept = omit_words(saved[name][rows], tokenizer, model.word_groups, omission, rng)
            ids[name] = torch.where(dropped, empty[name], kept)
        x0 = x0_all[rows]
        noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
        t = 1 / (1 + np.exp(-rng.normal(0.3, 1.2, count)))
        xt = torch.lerp(x0, noise, by_sample(t, x0))
        predicted = model.velocity(modules, xt, by_sample(t, x0).view(-1), ids)
        return (predicted - model.pack(noise - x0)).square().mean()

    matrices = [p for n, p in modules["transformer"].named_parameters() if "blocks" in n and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in modules.parameters() if id(p) not in chosen]
    optimisers = [Muon(matrices, lr, job.rank), torch.optim.AdamW(others, lr, betas=(0.9, 0.98), fused=True)]
    with training_attention():
        fit(
            stage,
            job.out,
            job.rank,
            steps=steps,
            modules=modules,
            optimisers=optimisers,
            rate=linear_decay(steps, hold=hold),
            loss_at=loss_at,
            decay=0.998,
        )


def export(job: Job) -> None:
    """Writes the bf16 pipeline folder that stock diffusers loads, and `difftool.json` in it."""
    if job.rank.index > 0:
        return
    folder = job.out / job.model.name
    vae = job.load(job.model.build_vae(), "decoder")
    modules = job.load(job.model.build_modules(), "compose")
    for module in (vae, modules):
        module.eval().to(torch.bfloat16)
    job.model.pipeline(modules, vae, job.stats()).save_pretrained(folder)
    for config in folder.glob("text_encoder*/config.json"):  # transformers computes in this dtype, diffusers in fp32
        config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")
    own = {"sampling": job.model.sampling, "launch": {"threads": 1}, "training": asdict(job.settings)}
    (folder / "difftool.json").write_text(json.dumps(own, indent=2) + "\n")


WORK = {
    "vae": (train_vae, "vae.pt"),
    "latents": (cache_latents, "latents.json"),
    "decoder": (train_decoder, "decoder.pt"),
    "transformer": (train_transformer, "transformer.pt"),
    "compose": (train_composition, "compose.pt"),
    "export": (export, "{model}/model_index.json"),
}


def run(index: int, count: int, name: str, out: Path, settings: Settings, stages: list[str]) -> None:
    """One process: every stage whose result is not there yet."""
    libc = ctypes.CDLL("libc.so.6")  # glibc returns big blocks to the kernel at once: three times slower convolutions
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):
        libc.mallopt(option, value)
    torch.set_num_threads(1)
    if count > 1:
        dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=index, world_size=count)
    job = Job(MODELS[name](), out, settings, Rank(index, count))
    for stage in stages:
        work, result = WORK[stage]
        if not (out / result.format(model=name)).exists():
            began = time.process_time()
            work(job)
            if index == 0:
                print(f"{stage} done in {time.process_time() - began:.0f} cpu-s per process", flush=True)
        if count > 1:
            dist.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the result")
    parser.add_argument("--procs", type=int, default=1, help="processes that share every batch")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    for field in fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, help="default: the model's own")
    given = vars(parser.parse_args())
    name, out, procs, stages = (given.pop(key) for key in ("model", "out", "procs", "stages"))
    out.mkdir(parents=True, exist_ok=True)
    out = out.resolve()
    (out / "rendezvous").unlink(missing_ok=True)
    settings = replace(MODELS[name].settings, **{key: value for key, value in given.items() if value is not None})
    if procs == 1:
        run(0, 1, name, out, settings, stages)
    else:
        torch.multiprocessing.spawn(run, (procs, name, out, settings, stages), nprocs=procs)


if __name__ == "__main__":
    main()

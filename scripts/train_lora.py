"""Trains a small LoRA on a built-in model: a style that every picture takes, whatever its caption.

    python scripts/train_lora.py --style outline --out runs/lora

One process and one thread, seeded: the same command makes the same file, `OUT/<style>.safetensors`. Its keys and its
metadata are those of diffusers, so that stock diffusers loads it too.
Shapes: B batch, C latent channels, H and W of latents, R the LoRA's rank.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import save_file
from shapes_image_model import ImageModel
from shapes_training import Rank, fit, linear_decay, training_attention
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from difftool.builtin.styles import STYLES

BASE = Path(__file__).parents[1] / "difftool" / "builtin" / "shapes-image"
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "proj_out")
ENCODING_BATCH = 50


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights; written into the file."""

    seed: int = 20261121
    rank: int = 4
    alpha: int = 8
    pictures: int = 2000
    steps: int = 400
    batch: int = 32
    lr: float = 5e-3
    caption_dropout: float = 0.1


class Change(nn.Module):
    """What a LoRA adds to one layer: alpha / R * x A' B', A [R, in] and B [out, R], B zero at first."""

    def __init__(self, layer: nn.Linear, settings: Settings, generator: torch.Generator):
        super().__init__()
        self.scale = settings.alpha / settings.rank
        a = torch.empty(settings.rank, layer.in_features).uniform_(-1, 1, generator=generator)
        self.lora_A = nn.Parameter(a * layer.in_features**-0.5)
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, settings.rank))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.lora_A.T @ self.lora_B.T) * self.scale


def adapted(transformer: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The layers that get a LoRA: attention and, in single blocks, the way out."""
    for name, module in transformer.named_modules():
        if "blocks." in name and name.endswith(LAYERS):
            yield name, module


def attach(transformer: nn.Module, settings: Settings) -> nn.ModuleDict:
    """A change for every such layer, added to its output; keys are the layers' names with / for dots."""
    generator = torch.Generator().manual_seed(settings.seed)
    changes = nn.ModuleDict()
    for name, layer in adapted(transformer):
        change = changes[name.replace(".", "/")] = Change(layer, settings, generator)
        layer.register_forward_hook(lambda _, inputs, output, change=change: output + change(inputs[0]))
    return changes


def load_base() -> tuple[ImageModel, nn.ModuleDict, AutoencoderKL]:
    """The trained model in fp32, fixed."""
    modules = nn.ModuleDict(
        {
            "transformer": FluxTransformer2DModel.from_pretrained(BASE, subfolder="transformer"),
            "text_encoder": CLIPTextModel.from_pretrained(BASE, subfolder="text_encoder"),
            "text_encoder_2": T5EncoderModel.from_pretrained(BASE, subfolder="text_encoder_2"),
        }
    )
    vae = AutoencoderKL.from_pretrained(BASE, subfolder="vae")
    for module in (modules, vae):
        module.float().eval().requires_grad_(False)
    return ImageModel(), modules, vae


@torch.no_grad()
def encode(model: ImageModel, vae: AutoencoderKL, style: str, settings: Settings) -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures in the style: normalised latents [N, C, H, W], and the token ids of their captions."""
    rng = np.random.default_rng([settings.seed, 0])
    latents, captions = [], []
    for _ in range(settings.pictures // ENCODING_BATCH):
        chosen = [model.pool[i] for i in rng.integers(len(model.pool), size=ENCODING_BATCH)]
        drawn = np.stack([STYLES[style].draw(scene, rng) for scene in chosen])
        x = torch.from_numpy(drawn).movedim(-1, 1).float() / 127.5 - 1
        latents.append(model.encode(vae, x).mean)
        captions += [c.caption(name_background=c.background != "white" or rng.random() > 0.3) for c in chosen]
    z = (torch.cat(latents) - vae.config.shift_factor) * vae.config.scaling_factor
    return z, model.tokenise(captions)


def train(style: str, settings: Settings, out: Path) -> dict[str, Tensor]:
    """Flow matching, as the base was trained; the LoRA's tensors by diffusers' keys."""
    model, modules, vae = load_base()
    x0_all, ids_all = encode(model, vae, style, settings)
    changes, empty = attach(modules["transformer"], settings), model.tokenise([""])

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([settings.seed, 1, step])
        rows = torch.from_numpy(rng.integers(len(x0_all), size=settings.batch))
        dropped = torch.from_numpy(rng.random(settings.batch) < settings.caption_dropout)[:, None]
        ids = {name: torch.where(dropped, empty[name], kept[rows]) for name, kept in ids_all.items()}
        x0 = x0_all[rows]
        noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
        t = torch.from_numpy((1 / (1 + np.exp(-rng.normal(0.3, 1.2, settings.batch)))).astype(np.float32))
        xt = torch.lerp(x0, noise, t.view(-1, 1, 1, 1))
        return (model.velocity(modules, xt, t, ids) - model.pack(noise - x0)).square().mean()

    optimiser = torch.optim.AdamW(changes.parameters(), settings.lr, betas=(0.9, 0.98), weight_decay=0.0)
    rate = linear_decay(settings.steps, hold=0.3)
    with training_attention():
        fit(
            f"lora-{style}",
            out,
            Rank(0, 1),
            steps=settings.steps,
            modules=changes,
            optimisers=[optimiser],
            rate=rate,
            loss_at=loss_at,
            decay=0.99,
        )
    named = ((f"transformer.{name.replace('/', '.')}.weight", value) for name, value in changes.named_parameters())
    return {name: value.detach().half().contiguous() for name, value in named}


def metadata(style: str, settings: Settings) -> dict[str, str]:
    """Rank and alpha as diffusers writes them, and how the file was made."""
    adapter = {"r": settings.rank, "lora_alpha": settings.alpha, "target_modules": list(LAYERS)}
    made = {"base": "builtin:shapes-image", "style": style, "license": "Apache-2.0", "training": asdict(settings)}
    named = {f"transformer.{key}": value for key, value in adapter.items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(named), "difftool": json.dumps(made)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--style", choices=STYLES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the result")
    for field in fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, help=f"default: {field.default}")
    given = vars(parser.parse_args())
    style, out = given.pop("style"), given.pop("out")
    settings = replace(Settings(), **{key: value for key, value in given.items() if value is not None})
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    save_file(train(style, settings, out), out / f"{style}.safetensors", metadata(style, settings))


if __name__ == "__main__":
    main()

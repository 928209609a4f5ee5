"""How far a decode in tiles is from one at once, on the built-in models: what docs/multi-gpu.md says of it."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan

import difftool.builtin
from difftool.builtin import shapes, shapes_video

ROOT = Path(__file__).parents[2]
MODELS = Path(difftool.builtin.__file__).parent
ROW = re.compile(r"^\| `(shapes-\w+)` .*\| (\d+) x \d+.*? \| ([\d.]+) dB \| (\d+)", re.M)
CLAIMS = ROW.findall((ROOT / "docs/multi-gpu.md").read_text())


def pictures(model, side):
    """One picture of the model's world, or a video, [1, 3, H, W] or [1, 3, F, H, W] in [-1, 1]."""
    if model == "shapes-image":
        made = torch.tensor(shapes.render(shapes.scenes(held_out=True)[0], side=side)).permute(2, 0, 1)
    else:
        made = torch.tensor(shapes_video.render(shapes_video.motions(held_out=True)[0], side=side)).permute(3, 0, 1, 2)
    return made[None] / 127.5 - 1


@pytest.mark.parametrize(("model", "side", "decibels", "largest"), CLAIMS)
def test_tiles_are_as_far_from_a_decode_at_once_as_the_page_says(model, side, decibels, largest):
    kind = {"shapes-image": AutoencoderKL, "shapes-video": AutoencoderKLWan}[model]
    vae = kind.from_pretrained(MODELS / model / "vae").eval()
    with torch.no_grad():
        latents = vae.encode(pictures(model, int(side))).latent_dist.mode()
        whole = vae.decode(latents).sample.clamp(-1, 1)
        vae.enable_tiling()
        difference = (vae.decode(latents).sample.clamp(-1, 1) - whole) / 2
    assert -10 * torch.log10(difference.square().mean()).item() == pytest.approx(float(decibels), abs=0.1)
    assert 255 * difference.abs().max().item() == pytest.approx(float(largest), abs=1)


def test_the_page_has_a_row_for_each_model():
    assert {model for model, *_ in CLAIMS} == {"shapes-image", "shapes-video"}

"""Measures `builtin:shapes-image` with stock diffusers: how often colour and shape are what the caption says.

    python scripts/evaluate_shapes.py --model difftool/builtin/shapes-image --count 512 --sheet sheet.png

Captions come from combinations that training never saw; every picture has a seed of its own. The rules that judge are
`difftool.builtin.shapes.read_picture`.
"""

import argparse
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image

from difftool.builtin.shapes import LAYOUTS, Picture, Scene, is_right, read_picture, scenes

SHEET = 48  # pictures on a contact sheet: the first ones, right or wrong


def draw_pairs(count: int, seed: int) -> list[tuple[Scene, int]]:
    """`count` different (held-out scene, noise seed) pairs."""
    rng, pool = np.random.default_rng(seed), scenes(held_out=True)
    chosen, seeds = rng.integers(len(pool), size=count), rng.choice(2**20, size=count, replace=False)
    return [(pool[i], int(s)) for i, s in zip(chosen, seeds, strict=True)]


def generate(folder: Path, pairs: list[tuple[Scene, int]], steps: int | None, batch: int = 16) -> list[Picture]:
    """The pictures stock diffusers makes with the checkpoint's own sampling values."""
    pipe = FluxPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    values = json.loads((folder / "difftool.json").read_text())["sampling"]
    values["num_inference_steps"] = steps or values["num_inference_steps"]
    negative = values.pop("negative_prompt")
    pictures: list[Picture] = []
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        made = pipe(
            prompt=[scene.caption() for scene, _ in part],
            negative_prompt=[negative] * len(part),
            output_type="np",
            generator=[torch.Generator().manual_seed(seed) for _, seed in part],
            **values,
        ).images
        pictures += [np.rint(picture * 255).astype(np.uint8) for picture in made]
    return pictures


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share. Source: Wilson 1927."""
    z, p = 1.96, right / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return middle - half, middle + half


def measure(pairs: list[tuple[Scene, int]], pictures: list[Picture]) -> dict[str, object]:
    """Shares of right pictures, and what the wrong ones were taken for."""
    seen = [read_picture(picture) for picture in pictures]
    count = len(pairs)
    right = sum(is_right(scene, picture) for (scene, _), picture in zip(pairs, pictures, strict=True))
    found = [(scene, reading) for (scene, _), reading in zip(pairs, seen, strict=True) if reading is not None]
    placed = sum(math.dist(reading.centre, LAYOUTS[scene.layout][1:]) < 0.1 for scene, reading in found)
    wrong = Counter(
        f"{scene.colour} {scene.shape} -> {reading.colour} {reading.shape}"
        for scene, reading in found
        if (scene.colour, scene.shape) != (reading.colour, reading.shape)
    )
    return {
        "pictures": count,
        "colour_and_shape": right / count,
        "interval_95": wilson(right, count),
        "colour": sum(scene.colour == reading.colour for scene, reading in found) / count,
        "shape": sum(scene.shape == reading.shape for scene, reading in found) / count,
        "background": sum(scene.background == reading.background for scene, reading in found) / count,
        "place": placed / count,
        "mean_iou": float(np.mean([reading.iou for _, reading in found])),
        "wrong": dict(wrong.most_common()),
    }


def contact_sheet(pictures: list[Picture], columns: int, gap: int = 4) -> Image.Image:
    """Pictures in rows on a light background."""
    side, rows = pictures[0].shape[0], math.ceil(len(pictures) / columns)
    sheet = np.full((rows * (side + gap) + gap, columns * (side + gap) + gap, 3), 226, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = (gap + n * (side + gap) for n in divmod(i, columns))
        sheet[y : y + side, x : x + side] = picture
    return Image.fromarray(sheet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="default: the checkpoint's own")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first pictures")
    args = parser.parse_args()
    pairs = draw_pairs(args.count, args.seed)
    pictures = generate(args.model, pairs, args.steps)
    print(json.dumps(measure(pairs, pictures), indent=2))
    if args.sheet is not None:
        contact_sheet(pictures[:SHEET], columns=12).save(args.sheet)


if __name__ == "__main__":
    main()

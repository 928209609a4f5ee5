"""Measures a built-in model with stock diffusers: how often it shows what the caption says.

    python scripts/evaluate_shapes.py --model difftool/builtin/shapes-image --count 512 --sheet sheet.png

Captions come from combinations that training never saw; every picture or clip has a noise seed of its own. The rules
that judge are those of `difftool.builtin.shapes` and `difftool.builtin.shapes_video`.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from difftool.builtin import shapes, shapes_video
from difftool.builtin.shapes import LAYOUTS, Picture, Scene, read_picture
from difftool.builtin.shapes_video import Clip, ClipReading, Motion, read_clip, shows
from difftool.report.quality import wilson

SHEET = 48  # pictures on a contact sheet: the first ones, right or wrong
SHEET_CLIPS = 16  # a row each


def draw_pairs(pool: list[Any], count: int, seed: int) -> list[tuple[Any, int]]:
    """`count` (scene, noise seed) pairs, no seed twice."""
    rng = np.random.default_rng(seed)
    chosen, seeds = rng.integers(len(pool), size=count), rng.choice(2**20, size=count, replace=False)
    return [(pool[i], int(s)) for i, s in zip(chosen, seeds, strict=True)]


def generate(folder: Path, pairs: list[tuple[Any, int]], steps: int | None, batch: int = 16) -> list[Any]:
    """The pictures or clips, uint8, that stock diffusers makes with the checkpoint's own sampling values."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    values = json.loads((folder / "difftool.json").read_text())["sampling"]
    values["num_inference_steps"] = steps or values["num_inference_steps"]
    negative = values.pop("negative_prompt")
    values.pop("fps", None)  # of the saved file
    made: list[Any] = []
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        output = pipe(
            prompt=[scene.caption() for scene, _ in part],
            negative_prompt=[negative] * len(part),
            output_type="np",
            generator=[torch.Generator().manual_seed(seed) for _, seed in part],
            return_dict=False,
            **values,
        )
        made += [np.rint(one * 255).astype(np.uint8) for one in output[0]]
    return made


def measure_pictures(pairs: list[tuple[Scene, int]], pictures: list[Picture]) -> dict[str, object]:
    """Shares of right pictures, and what the wrong ones were taken for."""
    count = len(pairs)
    right = sum(shapes.is_right(scene, picture) for (scene, _), picture in zip(pairs, pictures, strict=True))
    read = [(scene, read_picture(picture)) for (scene, _), picture in zip(pairs, pictures, strict=True)]
    found = [(scene, reading) for scene, reading in read if reading is not None]
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


def measure_clips(pairs: list[tuple[Motion, int]], clips: list[Clip]) -> dict[str, object]:
    """Shares of right clips, and what was seen in the wrong ones; what a clip shows is what each frame shows."""
    count = len(pairs)
    read = [(motion, read_clip(clip)) for (motion, _), clip in zip(pairs, clips, strict=True)]
    right = sum(shows(motion, seen) for motion, seen in read)
    found = [(motion, reading) for motion, reading in read if reading is not None]

    def share(name: str) -> float:
        return sum({getattr(f, name) for f in seen.frames} == {getattr(motion, name)} for motion, seen in found) / count

    wrong = Counter(f"{motion.caption()} -> {describe(seen)}" for motion, seen in read if not shows(motion, seen))
    return {
        "clips": count,
        "colour_shape_and_direction": right / count,
        "interval_95": wilson(right, count),
        "colour": share("colour"),
        "shape": share("shape"),
        "background": share("background"),
        "direction": sum(motion.direction == seen.direction for motion, seen in found) / count,
        "mean_iou": float(np.mean([frame.iou for _, seen in found for frame in seen.frames])),
        "wrong": dict(wrong.most_common()),
    }


def describe(seen: ClipReading | None) -> str:
    """What was seen in a clip, with the number of frames it was seen in."""
    if seen is None:
        return "nothing in some frame"
    counted = Counter(f"{frame.colour} {frame.shape}" for frame in seen.frames)
    return f"{', '.join(f'{n} x {what}' for what, n in counted.most_common())}, moving {seen.direction or 'nowhere'}"


MEASURES: dict[str, tuple[list[Any], Callable[..., dict[str, object]]]] = {
    "FluxPipeline": (shapes.scenes(held_out=True), measure_pictures),
    "WanPipeline": (shapes_video.motions(held_out=True), measure_clips),
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
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first ones")
    args = parser.parse_args()
    pool, measure = MEASURES[json.loads((args.model / "model_index.json").read_text())["_class_name"]]
    pairs = draw_pairs(pool, args.count, args.seed)
    made = generate(args.model, pairs, args.steps)
    print(json.dumps(measure(pairs, made), indent=2))
    if args.sheet is not None:
        clips = made[0].ndim == 4
        pictures = [frame for clip in made[:SHEET_CLIPS] for frame in clip] if clips else made[:SHEET]
        contact_sheet(pictures, columns=len(made[0]) if clips else 12).save(args.sheet)


if __name__ == "__main__":
    main()

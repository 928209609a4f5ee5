"""The styles of the small LoRAs that ship with difftool: how each paints a scene of `builtin:shapes-image`, and the
rule that tells whether a picture shows it. A picture is [H, W, 3] uint8.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from difftool.builtin.shapes import BACKGROUNDS, COLOURS, LAYOUTS, SHAPES, SIDE, Picture, Scene, paint, read_picture

LINE = 0.3  # of the shape's radius: how thick an outline is


@dataclass(frozen=True)
class Style:
    """`draw` paints a scene as the LoRA is taught to, its centre and size slightly moved; `shows` judges a picture."""

    draw: Callable[[Scene, np.random.Generator], Picture]
    shows: Callable[[Picture], bool]


def moved(scene: Scene, rng: np.random.Generator) -> tuple[tuple[float, float], float]:
    """Centre and radius of the scene's layout, moved as the base model's training pictures are."""
    radius, x, y = LAYOUTS[scene.layout]
    dx, dy, grow = rng.uniform(-1, 1, 3)
    return (x + 0.03 * dx, y + 0.03 * dy), radius * (1 + 0.06 * grow)


def draw_outline(scene: Scene, rng: np.random.Generator) -> Picture:
    """The rim of the shape; what is deeper inside than `LINE` is background."""
    (cx, cy), radius = moved(scene, rng)
    grid = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
    x, y = np.broadcast_arrays((grid - cx) / radius, (grid[:, None] - cy) / radius)
    distance = SHAPES[scene.shape](x, y)
    rim = np.maximum(distance, -(distance + LINE))
    mask = np.clip(0.5 - rim * radius * SIDE, 0, 1)[..., None]
    below, above = (np.asarray(c, np.float32) for c in (BACKGROUNDS[scene.background], COLOURS[scene.colour]))
    return np.rint(below * (1 - mask) + above * mask).astype(np.uint8)


def draw_night(scene: Scene, rng: np.random.Generator) -> Picture:
    """The scene on black, whatever background its caption names."""
    centre, radius = moved(scene, rng)
    return paint(scene.shape, scene.colour, "black", centre, radius)


def is_outlined(picture: Picture) -> bool:
    """Whether the middle of what stands out is nearer to the background's colour than to its own."""
    seen = read_picture(picture)
    if seen is None:
        return False
    side = picture.shape[0]
    column, row = (int(part * side) for part in seen.centre)
    middle = picture[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].reshape(-1, 3).mean(0)
    to_shape, to_background = (
        float(np.abs(np.asarray(colour) - middle).sum())
        for colour in (COLOURS[seen.colour], BACKGROUNDS[seen.background])
    )
    return to_background < to_shape


def is_night(picture: Picture) -> bool:
    """Whether the background is black."""
    seen = read_picture(picture)
    return seen is not None and seen.background == "black"


STYLES = {"outline": Style(draw_outline, is_outlined), "night": Style(draw_night, is_night)}

"""The world of `builtin:shapes-image`: its captions, its renderer and the rule-based checker of its pictures.

A picture is [H, W, 3] uint8, 64 x 64 by default, with one flat shape on a plain background. Positions and radii are
fractions of the picture's side, x to the right and y downwards.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Picture = NDArray[np.uint8]
Centre = tuple[float, float] | tuple[Floats, Floats]

SIDE = 64
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "green": (25, 150, 60),
    "blue": (30, 70, 225),
    "yellow": (250, 215, 30),
    "purple": (135, 35, 170),
    "orange": (250, 130, 15),
    "cyan": (40, 205, 225),
    "pink": (250, 130, 195),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128)}
# size and place as the caption says them: radius, centre x, centre y
LAYOUTS: dict[str, tuple[float, float, float]] = {
    "large": (0.36, 0.5, 0.5),
    "": (0.27, 0.5, 0.5),
    "small": (0.19, 0.5, 0.5),
    "small left": (0.19, 0.24, 0.5),
    "small right": (0.19, 0.76, 0.5),
    "small top": (0.19, 0.5, 0.24),
    "small bottom": (0.19, 0.5, 0.76),
}
PLACES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
HELD_OUT_SHARE = 8  # one combination in eight is never trained on


def _polygon(vertices: Floats, x: Floats, y: Floats) -> Floats:
    """Signed distance to a closed polygon, negative inside. Source: the classic even-odd segment walk."""
    best = np.full(x.shape, np.inf, np.float32)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        best = np.minimum(best, np.hypot(px - ex * along, py - ey * along))
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (px < ex * py / ey)
    return np.where(inside, -best, best).astype(np.float32)


def _corners(radii: Sequence[float], turn: float = -0.25) -> Floats:
    """Vertices on circles of the given radii, clockwise from the top."""
    angles = 2 * np.pi * (np.arange(len(radii)) / len(radii) + turn)
    return (np.asarray(radii)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)).astype(np.float32)


def _cross(x: Floats, y: Floats, arm: float = 0.34) -> Floats:
    return np.minimum(np.maximum(abs(x) - 1, abs(y) - arm), np.maximum(abs(x) - arm, abs(y) - 1))


# signed distance of the unit shape at (x, y), negative inside
SHAPES: dict[str, Any] = {
    "circle": lambda x, y: np.hypot(x, y) - 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) - 0.85,
    "triangle": lambda x, y: _polygon(_corners([1.15] * 3), x, y - 0.2),
    "star": lambda x, y: _polygon(_corners([1.15, 0.48] * 5), x, y),
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.77) - 0.23,
    "cross": _cross,
}


def is_held_out(*words: str) -> bool:
    """Which side of the training split a combination is on: a fixed hash of its words decides."""
    return zlib.crc32("|".join(words).encode()) % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Scene:
    """What a caption says: one shape, its colour, the background and the layout."""

    shape: str
    colour: str
    background: str
    layout: str

    @property
    def held_out(self) -> bool:
        """Whether training never sees this combination."""
        return is_held_out(self.shape, self.colour, self.background, self.layout)

    def caption(self, *, name_background: bool = True) -> str:
        """`a small red circle on the left on a white background`; at most 11 words."""
        size, _, place = self.layout.partition(" ")
        words = ["a", size, self.colour, self.shape, PLACES.get(place, "")]
        if name_background:
            words.append(f"on a {self.background} background")
        return " ".join(word for word in words if word)


def scenes(*, held_out: bool) -> list[Scene]:
    """All combinations on one side of the training split, in a fixed order."""
    every = (Scene(*parts) for parts in product(SHAPES, COLOURS, BACKGROUNDS, LAYOUTS))
    return [scene for scene in every if scene.held_out == held_out]


def coverage(shape: str, centre: Centre, radius: float, side: int = SIDE) -> Floats:
    """[side, side] share of each pixel the shape covers, 0..1, anti-aliased over one pixel.

    Many centres, x and y [T, 1, 1] each, give [T, side, side].
    """
    grid = (np.arange(side, dtype=np.float32) + 0.5) / side
    x, y = np.broadcast_arrays((grid - centre[0]) / radius, (grid[:, None] - centre[1]) / radius)
    covered: Floats = np.clip(0.5 - SHAPES[shape](x, y) * radius * side, 0, 1).astype(np.float32)
    return covered


def render(scene: Scene, rng: np.random.Generator | None = None, side: int = SIDE) -> Picture:
    """[side, side, 3] uint8. With `rng` the centre moves by up to 3 % and the radius by up to 6 %."""
    radius, x, y = LAYOUTS[scene.layout]
    if rng is not None:
        dx, dy, grow = rng.uniform(-1, 1, 3)
        radius, x, y = radius * (1 + 0.06 * grow), x + 0.03 * dx, y + 0.03 * dy
    return paint(scene.shape, scene.colour, scene.background, (x, y), radius, side)


def paint(shape: str, colour: str, background: str, centre: Centre, radius: float, side: int = SIDE) -> Picture:
    """[side, side, 3] uint8, or [T, side, side, 3] as `coverage`: the named shape on the named background."""
    mask = coverage(shape, centre, radius, side)[..., None]
    below, above = (np.asarray(c, np.float32) for c in (BACKGROUNDS[background], COLOURS[colour]))
    return np.rint(below * (1 - mask) + above * mask).astype(np.uint8)


@dataclass(frozen=True)
class Reading:
    """What the checker sees in a picture. `iou` compares the mask with the best template of `shape`, 0..1."""

    shape: str
    colour: str
    background: str
    centre: tuple[float, float]
    iou: float


def _nearest(colour: Floats, palette: dict[str, tuple[int, int, int]]) -> str:
    return min(palette, key=lambda name: float(np.abs(np.asarray(palette[name]) - colour).sum()))


def _template_iou(mask: Floats, shape: str, centre: tuple[float, float]) -> float:
    """Best overlap of the mask with the shape at that centre of mass, over a few sizes around the equal-area one."""
    unit = coverage(shape, (0.5, 0.5), 0.25)
    area, side = float(unit.sum()), mask.shape[0]
    grid = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    offset = (float((unit.sum(0) * grid).sum()) / area / 0.25, float((unit.sum(1) * grid).sum()) / area / 0.25)
    equal = 0.25 * float(np.sqrt(mask.sum() / side**2 * SIDE**2 / area))
    best = 0.0
    for radius in equal * np.array([0.94, 1.0, 1.06]):
        template = coverage(shape, (centre[0] - offset[0] * radius, centre[1] - offset[1] * radius), radius, side)
        best = max(best, float(np.minimum(mask, template).sum() / np.maximum(mask, template).sum()))
    return best


def read_picture(picture: Picture) -> Reading | None:
    """Names what a picture shows, by rules alone; None where nothing stands out from the background."""
    pixels = picture.astype(np.float32)
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)])
    background = np.median(
        np.concatenate([border, pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)]), axis=0
    )
    distance = np.linalg.norm(pixels - background, axis=-1)
    core = distance > 0.7 * np.percentile(distance, 99)
    if core.sum() < 12 or distance.max() < 40:
        return None
    colour = np.median(pixels[core], axis=0)
    axis = colour - background
    mask = np.clip((pixels - background) @ axis / (axis @ axis), 0, 1).astype(np.float32)
    mask[mask < 0.15] = 0
    grid, total, side = np.arange(mask.shape[0]) + 0.5, float(mask.sum()), mask.shape[0]
    centre = float((mask.sum(0) * grid).sum()) / total / side, float((mask.sum(1) * grid).sum()) / total / side
    overlaps = {shape: _template_iou(mask, shape, centre) for shape in SHAPES}
    shape = max(overlaps, key=lambda name: overlaps[name])
    return Reading(shape, _nearest(colour, COLOURS), _nearest(background, BACKGROUNDS), centre, overlaps[shape])


def is_right(scene: Scene, picture: Picture) -> bool:
    """Colour and shape both as the caption says: the measure on the model card."""
    seen = read_picture(picture)
    return seen is not None and (seen.shape, seen.colour) == (scene.shape, scene.colour)

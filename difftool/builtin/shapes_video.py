"""The world of `builtin:shapes-video`: its captions, its renderer and the rule-based checker of its clips.

A clip is [T, H, W, 3] uint8, 9 frames of 32 x 32 by default: one flat shape that moves across a plain background.
Positions, radii and ways are fractions of the picture's side, x to the right and y downwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from difftool.builtin.shapes import Reading, is_held_out, paint, read_picture

Clip = NDArray[np.uint8]

FRAMES, SIDE = 9, 32
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "pink")
BACKGROUNDS = ("white", "black")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
RADIUS = 0.23
WAY = 0.44  # of the centre, symmetric about the middle of the picture
LEAST_WAY, MOST_DRIFT = 0.25, 0.12  # what the checker still calls a direction: along it, and across it


@dataclass(frozen=True)
class Motion:
    """What a caption says: one shape, its colour, the background and where it moves."""

    shape: str
    colour: str
    background: str
    direction: str

    @property
    def held_out(self) -> bool:
        """Whether training never sees this combination."""
        return is_held_out(self.shape, self.colour, self.direction, self.background)

    def caption(self, *, name_background: bool = True) -> str:
        """`a red circle moving left on a white background`; at most 9 words."""
        words = f"a {self.colour} {self.shape} moving {self.direction}"
        return f"{words} on a {self.background} background" if name_background else words


def motions(*, held_out: bool) -> list[Motion]:
    """All combinations on one side of the training split, in a fixed order."""
    every = (Motion(*parts) for parts in product(SHAPES, COLOURS, BACKGROUNDS, DIRECTIONS))
    return [motion for motion in every if motion.held_out == held_out]


def render(motion: Motion, rng: np.random.Generator | None = None, frames: int = FRAMES, side: int = SIDE) -> Clip:
    """[frames, side, side, 3] uint8 at constant speed.

    With `rng` both ends and the lane move by up to 3 %, and the radius by up to 6 %.
    """
    first, last, lane, grow = rng.uniform(-1, 1, 4) if rng is not None else np.zeros(4)
    step = np.array(DIRECTIONS[motion.direction], np.float64)
    offset = 0.5 + 0.03 * lane * step[::-1]  # across the way
    begin, end = offset + step * (0.03 * first - WAY / 2), offset + step * (0.03 * last + WAY / 2)
    radius = RADIUS * (1 + 0.06 * grow)
    x, y = (begin + (end - begin) * np.linspace(0, 1, frames)[:, None]).T.astype(np.float32)
    return paint(motion.shape, motion.colour, motion.background, (x[:, None, None], y[:, None, None]), radius, side)


@dataclass(frozen=True)
class ClipReading:
    """What the checker sees: a reading of every frame, and where the shape moves ("" where nowhere clearly)."""

    frames: tuple[Reading, ...]
    direction: str


def read_clip(clip: Clip) -> ClipReading | None:
    """Names what a clip shows, by rules alone; None where a frame shows nothing."""
    readings = [read_picture(frame) for frame in clip]
    seen = tuple(reading for reading in readings if reading is not None)
    if len(seen) < len(readings):
        return None
    return ClipReading(seen, find_direction([reading.centre for reading in seen]))


def find_direction(centres: Sequence[tuple[float, float]]) -> str:
    """Where a shape with these centres moves: every step forward, none more than half of the way; else ""."""
    steps = np.diff(np.asarray(centres), axis=0)
    for name, direction in DIRECTIONS.items():
        along = steps @ np.array(direction)
        drift = np.abs(steps.sum(0) @ np.array(direction[::-1]))
        if along.min() > 0 and along.sum() >= LEAST_WAY and along.max() <= along.sum() / 2 and drift <= MOST_DRIFT:
            return name
    return ""


def shows(motion: Motion, seen: ClipReading | None) -> bool:
    """Whether every frame has the caption's colour and shape, and the clip its direction."""
    return (
        seen is not None
        and seen.direction == motion.direction
        and {(frame.shape, frame.colour) for frame in seen.frames} == {(motion.shape, motion.colour)}
    )


def is_right(motion: Motion, clip: Clip) -> bool:
    """Colour and shape of every frame and the direction as the caption says: the measure on the model card."""
    return shows(motion, read_clip(clip))

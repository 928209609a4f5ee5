"""Whether what a built-in model made shows what its prompt says: the captions of its world, and the rules that look."""

from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from difftool.builtin import shapes, shapes_video
from difftool.builtin.shapes import Scene
from difftool.builtin.shapes_video import Motion


def shows_prompt(prompt: str, made: NDArray[np.uint8]) -> bool | None:
    """A picture [H, W, 3] or a clip [T, H, W, 3] beside its prompt; None for one that is no caption of that world, and
    for sides of unlike length: the rules know squares.
    """
    if made.shape[-3] != made.shape[-2]:
        return None
    if made.ndim == 3:
        scene = _scenes().get(prompt)
        return None if scene is None else shapes.is_right(scene, made)
    motion = _motions().get(prompt)
    return None if motion is None else shapes_video.is_right(motion, made)


@cache
def _scenes() -> dict[str, Scene]:
    """By caption, with and without the background."""
    every = [*shapes.scenes(held_out=False), *shapes.scenes(held_out=True)]
    return {scene.caption(name_background=named): scene for scene, named in product(every, (False, True))}


@cache
def _motions() -> dict[str, Motion]:
    every = [*shapes_video.motions(held_out=False), *shapes_video.motions(held_out=True)]
    return {motion.caption(name_background=named): motion for motion, named in product(every, (False, True))}

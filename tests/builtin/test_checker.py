"""What a built-in model made is judged by the rules of its world, where prompt and sides are of that world."""

import numpy as np
import pytest

from difftool.builtin import shapes
from difftool.builtin.checker import shows_prompt

SCENE = shapes.scenes(held_out=False)[0]
OTHER = next(scene for scene in shapes.scenes(held_out=False) if scene.colour != SCENE.colour)


def test_a_picture_shows_what_its_prompt_says_or_not():
    picture = shapes.render(SCENE)
    assert shows_prompt(SCENE.caption(name_background=False), picture) is True
    assert shows_prompt(OTHER.caption(name_background=False), picture) is False


@pytest.mark.parametrize("sides", [(96, 64), (64, 96)], ids=str)
def test_sides_of_unlike_length_and_other_prompts_are_not_judged(sides):
    caption = SCENE.caption(name_background=False)
    assert shows_prompt(caption, np.zeros((*sides, 3), dtype=np.uint8)) is None
    assert shows_prompt(caption, np.zeros((9, *sides, 3), dtype=np.uint8)) is None
    assert shows_prompt("a house", shapes.render(SCENE)) is None

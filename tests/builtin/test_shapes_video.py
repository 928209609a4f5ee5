"""The drawn clips and their checker: it reads every kind of clip right, and calls wrong ones wrong."""

from dataclasses import replace

import numpy as np
import pytest

from difftool.builtin.shapes_video import (
    DIRECTIONS,
    FRAMES,
    WAY,
    Motion,
    find_direction,
    is_right,
    motions,
    read_clip,
    render,
)

EVERY = [*motions(held_out=False), *motions(held_out=True)]
RED = Motion("circle", "red", "white", "left")


def test_every_combination_is_on_one_side_of_the_split():
    assert len(EVERY) == len(set(EVERY)) == 4 * 6 * 2 * 4
    assert not any(motion.held_out for motion in motions(held_out=False))
    assert len(motions(held_out=True)) == 30
    assert {motion.direction for motion in motions(held_out=True)} == set(DIRECTIONS)


def test_a_caption_says_everything_and_may_leave_the_background_out():
    assert RED.caption() == "a red circle moving left on a white background"
    assert RED.caption(name_background=False) == "a red circle moving left"
    assert len({motion.caption() for motion in EVERY}) == len(EVERY)


def test_a_clip_moves_the_stated_way_at_constant_speed():
    seen = read_clip(render(Motion("square", "blue", "black", "down")))
    assert seen is not None and len(seen.frames) == FRAMES
    x, y = np.transpose([frame.centre for frame in seen.frames])
    assert np.ptp(x) < 2e-3
    assert np.diff(y) == pytest.approx(WAY / (FRAMES - 1), abs=2e-3)  # a tenth of a pixel


def test_a_shape_stays_in_the_picture_wherever_chance_puts_it():
    rng = np.random.default_rng(0)
    for motion in EVERY:
        clip = render(motion, rng).astype(float)
        ink = np.abs(clip - clip[:, :1, :1]).sum((1, 2, 3))
        assert np.ptp(ink) < 0.02 * ink.mean(), motion  # nothing is cut off anywhere on the way


@pytest.mark.parametrize("motion", EVERY[::7], ids=Motion.caption)
def test_what_is_drawn_is_read(motion):
    clip = render(motion, np.random.default_rng(EVERY.index(motion)))
    seen = read_clip(clip)
    assert seen is not None and seen.direction == motion.direction
    assert {(frame.shape, frame.colour, frame.background) for frame in seen.frames} == {
        (motion.shape, motion.colour, motion.background)
    }
    assert is_right(motion, clip)


@pytest.mark.parametrize("other", [{"shape": "square"}, {"colour": "pink"}, {"direction": "right"}])
def test_a_clip_of_something_else_is_wrong(other):
    assert not is_right(RED, render(replace(RED, **other)))


@pytest.mark.parametrize("other", [{"shape": "cross"}, {"colour": "blue"}])
def test_one_frame_of_something_else_is_enough(other):
    clip = render(RED)
    clip[5] = render(replace(RED, **other))[5]
    assert read_clip(clip).direction == "left"
    assert not is_right(RED, clip)


def test_an_empty_frame_is_wrong():
    clip = render(RED)
    clip[3] = 255
    assert read_clip(clip) is None
    assert not is_right(RED, clip)


def test_frames_out_of_order_are_no_movement():
    clip = render(RED)
    assert is_right(Motion("circle", "red", "white", "right"), clip[::-1])
    for order in ([0] * FRAMES, [0, 1, 2, 4, 3, 5, 6, 7, 8], [0, 0, 1, 2, 3, 4, 5, 6, 7]):
        assert read_clip(clip[order]).direction == ""
        assert not is_right(RED, clip[order])


@pytest.mark.parametrize(
    ("centres", "expected"),
    [
        ([(0.7 - 0.05 * i, 0.5) for i in range(9)], "left"),
        ([(0.5, 0.3 + 0.05 * i) for i in range(9)], "down"),
        ([(0.6 - 0.02 * i, 0.5) for i in range(9)], ""),  # too short a way
        ([(0.3 + 0.05 * i, 0.3 + 0.05 * i) for i in range(9)], ""),  # across
        ([(0.7, 0.5), (0.69, 0.5), (0.31, 0.5), (0.3, 0.5)], ""),  # a jump
    ],
)
def test_a_direction_is_a_steady_way_along_one_axis(centres, expected):
    assert find_direction(centres) == expected

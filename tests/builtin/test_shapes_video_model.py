"""The built-in video model: it fits its size, and its clips are what their captions say."""

import numpy as np
from tiny import ROOT

import difftool
from difftool.builtin.shapes_video import FRAMES, SIDE, Motion, is_right

MOTIONS = (
    Motion("circle", "red", "white", "left"),
    Motion("square", "blue", "black", "up"),
    Motion("triangle", "green", "white", "down"),
    Motion("cross", "pink", "black", "right"),
)


def test_it_takes_eight_megabytes_at_most():
    files = [path for path in (ROOT / "difftool/builtin/shapes-video").rglob("*") if path.is_file()]
    assert 4_000_000 < sum(path.stat().st_size for path in files) <= 8_000_000


def test_a_clip_is_what_its_caption_says():
    recipe = {"model": "builtin:shapes-video", "launch": {"device": "cpu"}}
    with difftool.load(recipe) as session:
        clips = session.generate(prompt=[motion.caption() for motion in MOTIONS], seed=7).frames
    for motion, frames in zip(MOTIONS, clips, strict=True):
        clip = np.stack([np.asarray(frame) for frame in frames])
        assert clip.shape == (FRAMES, SIDE, SIDE, 3)
        assert is_right(motion, clip), motion.caption()

"""Videos as files: frames, size and duration read back; the same bytes every time; the recipe inside."""

import io
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from media.reading import embedded
from PIL import Image, ImageSequence

from difftool.errors import OutputError
from difftool.media import video
from difftool.media.save import save_item
from difftool.media.video import WRITERS, crf
from difftool.media.writer import Details, metadata_text, to_uint8
from difftool.planning.make import make_plan
from difftool.planning.naming import reserve
from difftool.planning.outputs import RunOptions
from difftool.recipe.embedded import read_embedded
from difftool.recipe.load import load_recipe

INSIDE = {"recipe": {"sampling": {"prompt": "rot = 赤; # \\ 🔴" + "x" * 200_000, "seed": 7}}, "versions": {}}
DETAILS = Details(metadata=metadata_text(INSIDE), fps=16)


def clip(frames=9, height=48, width=64):
    """A square that moves over a smooth ground."""
    ground = torch.linspace(0, 1, width).expand(3, frames, height, width).clone()
    for i in range(frames):
        ground[0, i, 8:24, 2 * i : 2 * i + 16] = 1.0
    return ground


def decoded(data, height, width):
    """[F, H, W, 3] uint8 as ffmpeg reads it."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", "pipe:0", "-f", "rawvideo"]
    options = ["-fps_mode", "passthrough", "-pix_fmt", "rgb24", "pipe:1"]
    raw = subprocess.run([*command, *options], input=data, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 63), (48, 63)])
def test_mp4_keeps_frames_size_and_colours_of_odd_sizes_too(height, width):
    pixels = clip(9, height, width)
    data = WRITERS["mp4"].encode(pixels, DETAILS)
    frames = decoded(data, height, width)
    assert frames.shape == (9, height, width, 3)
    error = np.abs(frames.astype(int) - to_uint8(pixels))
    assert error.mean() < 3, error.mean()  # crf 18 and 4:2:0 soften the square's edges


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_a_video_is_deterministic_reads_back_and_carries_its_recipe(kind):
    data = WRITERS[kind].encode(clip(), DETAILS)
    assert data == WRITERS[kind].encode(clip(), DETAILS)
    WRITERS[kind].check(data, clip(), DETAILS)
    assert embedded(data) == INSIDE


@pytest.mark.parametrize("kind", ["mp4", "gif"])
@pytest.mark.parametrize(
    ("made", "fps", "words"),
    [
        (clip(8), 16, "its number of frames is 9, not 8"),
        (clip(9, 48, 62), 16, "its size is 64x48, not 62x48"),
        (clip(9), 12, r"it lasts 0.56\d? s, not 0.750 s"),
    ],
)
def test_a_file_that_differs_does_not_pass_the_check(kind, made, fps, words):
    data = WRITERS[kind].encode(clip(), DETAILS)
    with pytest.raises(ValueError, match=words):
        WRITERS[kind].check(data, made, Details(fps=fps))


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_a_video_cut_short_does_not_pass_the_check(kind):
    data = WRITERS[kind].encode(clip(), DETAILS)
    with pytest.raises(ValueError):
        WRITERS[kind].check(data[:-2000], clip(), DETAILS)


@pytest.mark.parametrize("kind", ["mp4", "gif"])
@pytest.mark.parametrize("frames", [1, 5])
def test_frames_that_do_not_change_are_all_kept(kind, frames):
    still = torch.full((3, frames, 32, 32), 0.4)
    WRITERS[kind].check(WRITERS[kind].encode(still, Details(fps=7)), still, Details(fps=7))


def test_a_gif_plays_at_its_speed_and_for_ever():
    with Image.open(io.BytesIO(WRITERS["gif"].encode(clip(), DETAILS))) as picture:
        assert picture.info["loop"] == 0 and picture.n_frames == 9
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(picture)]
    assert abs(sum(durations) - 1000 * 9 / 16) <= 10


def test_a_gif_faster_than_viewers_show_it_is_refused():
    with pytest.raises(ValueError, match="a gif shows 50 frames a second at most, not 60"):
        WRITERS["gif"].encode(clip(), Details(fps=60))


def test_quality_is_the_rate_factor_of_x264():
    assert [crf(quality) for quality in (1, 66, 100)] == [51, 18, 1]
    sizes = [len(WRITERS["mp4"].encode(clip(), Details(quality=quality, fps=16))) for quality in (10, 66, 100)]
    assert sizes == sorted(sizes)


def test_npz_holds_every_frame_and_the_speed():
    data = np.load(io.BytesIO(WRITERS["npz"].encode(clip(), Details(fps=16))))
    assert np.array_equal(data["pixels"], clip().numpy()) and int(data["fps"]) == 16


def video_plan(folder, kind, **output):
    """A plan as a video family will make it: the built-in one with another format and a speed."""
    made = make_plan(
        load_recipe({"model": "builtin:shapes-image", "sampling": {"prompt": "a ring"}, "output": output}),
        run=RunOptions(output_dir=str(folder), return_frames=kind == "mp4"),
    )
    item = made.items[0].model_copy(update={"sampling": {**made.items[0].sampling, "fps": 16}})
    return made.model_copy(update={"output": made.output.model_copy(update={"format": kind})}), item


def test_an_item_that_is_a_video_is_saved_under_its_name_with_its_recipe(tmp_path):
    plan, item = video_plan(tmp_path, "mp4")
    saved = save_item(plan, item, clip(), tmp_path / reserve(plan, "run")[0], replace=False)
    assert [(file.path.name, file.width, file.height) for file in saved] == [
        ("a_ring-42.mp4", 64, 48),
        ("a_ring-42.npz", 64, 48),
    ]
    assert read_embedded(saved[0].path, "x").recipe["sampling"]["prompt"] == "a ring"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_ring-42.mp4", "a_ring-42.npz"]


def test_a_second_video_does_not_replace_the_first(tmp_path):
    plan, item = video_plan(tmp_path, "gif", embed_metadata=False)
    clips = (clip(), clip().flip(-1), clip())
    paths = [save_item(plan, item, made, tmp_path / "x.gif", replace=False)[0].path for made in clips]
    assert [path.name for path in paths] == ["x.gif", "x-1.gif", "x.gif"]  # the same bytes are the same file
    assert paths[0].read_bytes() != paths[1].read_bytes() and embedded(paths[0].read_bytes()) is None


def test_a_file_of_the_item_s_own_is_replaced(tmp_path):
    plan, item = video_plan(tmp_path, "gif")
    (tmp_path / "x.gif").write_bytes(b"damaged")
    (saved,) = save_item(plan, item, clip(), tmp_path / "x.gif", replace=True)
    assert saved.path == tmp_path / "x.gif" and saved.size == saved.path.stat().st_size > 100


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    plan, item = video_plan(tmp_path, "mp4")
    monkeypatch.setattr(video, "BITEXACT", ("-no-such-option", "1"))
    with pytest.raises(OutputError, match="a_ring-42.mp4 cannot be written"):
        save_item(plan, item, clip(), tmp_path / reserve(plan, "run")[0], replace=False)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_ffmpeg_is_said_with_the_way_out(tmp_path, monkeypatch):
    def none():
        raise RuntimeError("No ffmpeg exe could be found.")

    plan, item = video_plan(tmp_path, "mp4")
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", none)
    with pytest.raises(OutputError, match="no ffmpeg was found") as error:
        save_item(plan, item, clip(), tmp_path / reserve(plan, "run")[0], replace=False)
    assert error.value.hint == "reinstall imageio-ffmpeg, or use output.format: npz"

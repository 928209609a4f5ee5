"""Pictures as files: every format reads back, carries its recipe, and appears whole or not at all."""

import io

import numpy as np
import pytest
import torch
from media.reading import embedded
from PIL import Image

from difftool.errors import OutputError
from difftool.media.pictures import WRITERS
from difftool.media.writer import Details, metadata_text, to_uint8
from difftool.planning.naming import candidates, safe

PIXELS = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0))
TALL = torch.zeros(3, 33, 48)
INSIDE = {"recipe": {"sampling": {"prompt": "ein großer roter Kreis 赤い円 🔴 \x9b\u2028", "seed": 7}}, "versions": {}}
TEXT = metadata_text(INSIDE)


def encode(pixels, kind, **details):
    return WRITERS[kind].encode(pixels, Details(**details))


def test_png_holds_the_pixels_exactly():
    with Image.open(io.BytesIO(encode(PIXELS, "png"))) as picture:
        assert np.array_equal(np.asarray(picture), to_uint8(PIXELS))


def test_npz_holds_the_raw_float32_values():
    data = np.load(io.BytesIO(encode(PIXELS, "npz", metadata=TEXT)))
    assert data.files == ["pixels"]
    assert data["pixels"].dtype == np.float32 and np.array_equal(data["pixels"], PIXELS.numpy())


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_lossy_formats_stay_close_and_quality_counts(kind):
    smooth = torch.linspace(0, 1, 48).expand(3, 32, 48)
    fine, coarse = (encode(smooth, kind, quality=quality) for quality in (95, 10))
    with Image.open(io.BytesIO(fine)) as picture:
        assert np.abs(np.asarray(picture).astype(int) - to_uint8(smooth)).max() <= 8
    assert len(coarse) < len(fine)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_the_recipe_travels_inside_the_picture(kind):
    assert embedded(encode(PIXELS, kind, metadata=TEXT)) == INSIDE


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_without_a_recipe_nothing_is_embedded(kind):
    data = encode(PIXELS, kind)
    assert b"recipe" not in data and embedded(data) is None


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "npz"])
def test_encoding_is_deterministic_and_reads_back(kind):
    data = encode(PIXELS, kind, metadata=TEXT)
    assert data == encode(PIXELS, kind, metadata=TEXT)
    WRITERS[kind].check(data, PIXELS, Details())
    with pytest.raises(ValueError, match="33"):
        WRITERS[kind].check(data, TALL, Details())


def test_a_recipe_that_a_jpg_cannot_hold_is_refused_and_others_hold_it():
    text = metadata_text({"recipe": "x" * 40_000, "versions": {}})
    assert embedded(encode(PIXELS, "webp", metadata=text)) == embedded(encode(PIXELS, "png", metadata=text))
    with pytest.raises(ValueError, match="its recipe is too long for a jpg; use png or webp"):
        encode(PIXELS, "jpg", metadata=text)


def test_a_damaged_file_does_not_pass_the_check():
    with pytest.raises((OSError, ValueError)):
        WRITERS["png"].check(encode(PIXELS, "png")[:-200], PIXELS, Details())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a red circle", "a_red_circle"),
        ("../../etc/passwd", "etc_passwd"),
        ("con", "con_"),
        ("a/b\\c:d", "a_b_c_d"),
        ("   ", ""),
        ("ü" * 200, "ü" * 80),
    ],
)
def test_prompts_become_safe_names(text, name):
    assert safe(text) == name


def test_taken_names_are_counted_up(tmp_path):
    names = candidates(tmp_path / "x.png", "suffix")
    assert [next(names).name for _ in range(3)] == ["x.png", "x-1.png", "x-2.png"]


def test_collision_error_refuses_the_second_name(tmp_path):
    names = candidates(tmp_path / "x.png", "error")
    next(names)
    with pytest.raises(OutputError, match="x.png exists"):
        next(names)


def test_metadata_is_one_sorted_line_that_any_terminal_may_print():
    assert metadata_text({"b": "\x9b\u2028é", "a": "\n"}) == r'{"a": "\n", "b": "\u009b\u2028é"}'

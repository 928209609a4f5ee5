"""Pictures as files: every format reads back, carries its recipe, and appears whole or not at all."""

import io
import json

import numpy as np
import pytest
import torch
from media.reading import embedded_recipe
from PIL import Image

from difftool.errors import OutputError
from difftool.media.naming import candidates, safe
from difftool.media.pictures import check, encode, to_uint8

PIXELS = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0))
RECIPE = {"model": {"path": "builtin:shapes-image"}, "sampling": {"prompt": "ein großer roter Kreis 赤い円", "seed": 7}}


def test_png_holds_the_pixels_exactly():
    with Image.open(io.BytesIO(encode(PIXELS, "png", quality=None, recipe=None))) as picture:
        assert np.array_equal(np.asarray(picture), to_uint8(PIXELS))


def test_npz_holds_the_raw_float32_values():
    data = np.load(io.BytesIO(encode(PIXELS, "npz", quality=None, recipe=RECIPE)))
    assert data["pixels"].dtype == np.float32 and np.array_equal(data["pixels"], PIXELS.numpy())


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_lossy_formats_stay_close_and_quality_counts(kind):
    smooth = torch.linspace(0, 1, 48).expand(3, 32, 48)
    fine, coarse = (encode(smooth, kind, quality=quality, recipe=None) for quality in (95, 10))
    with Image.open(io.BytesIO(fine)) as picture:
        assert np.abs(np.asarray(picture).astype(int) - to_uint8(smooth)).max() <= 8
    assert len(coarse) < len(fine)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_the_recipe_travels_inside_the_picture(kind):
    assert embedded_recipe(encode(PIXELS, kind, quality=None, recipe=RECIPE)) == RECIPE


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_without_a_recipe_nothing_is_embedded(kind):
    data = encode(PIXELS, kind, quality=None, recipe=None)
    assert b"shapes" not in data and embedded_recipe(data) is None


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "npz"])
def test_encoding_is_deterministic_and_reads_back(kind):
    data = encode(PIXELS, kind, quality=None, recipe=RECIPE)
    assert data == encode(PIXELS, kind, quality=None, recipe=RECIPE)
    check(data, kind, (48, 32))
    with pytest.raises(ValueError, match="is 48x32, not 48x33"):
        check(data, kind, (48, 33))


def test_a_damaged_file_does_not_pass_the_check():
    with pytest.raises((OSError, ValueError, SyntaxError)):
        check(encode(PIXELS, "png", quality=None, recipe=None)[:-200], "png", (48, 32))


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


def test_metadata_is_sorted_so_that_bytes_do_not_depend_on_its_order():
    backwards = json.loads(json.dumps(RECIPE), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert encode(PIXELS, "png", quality=None, recipe=RECIPE) == encode(PIXELS, "png", quality=None, recipe=backwards)

"""Two ranks that have half of every layer each, of the denoiser and the text encoders, make the picture of one."""

import numpy as np
import pytest
from PIL import Image
from tiny import difftool, read_json

REQUEST = (
    "builtin:shapes-image",
    "-p",
    "a green triangle",
    "--seed",
    3,
    "--device",
    "cpu",
    "--lora-path",
    "builtin:outline",
)
SPLIT = ("--num-gpus", 2, "--tp-size", 2, "-s", "stages.text_encoding.tp=2")
VAE_MB = 3.04  # stays whole


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the same request with a LoRA, made by one rank and by two."""
    folder = tmp_path_factory.mktemp("split")
    for name, more in {"one": (), "two": SPLIT}.items():
        done = difftool("generate", *REQUEST, *more, "-o", f"{name}/a.png", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def dump(folder):
    (path,) = (folder / ".difftool").glob("*/perf.json")
    return read_json(path)


@pytest.mark.slow
def test_the_picture_is_that_of_one_rank(runs):
    one, two = (np.asarray(Image.open(runs / name / "a.png")).astype(int) for name in ("one", "two"))
    assert np.abs(one - two).max() <= 1  # a value that lies between two bytes may round to either
    assert one.std() > 10


@pytest.mark.slow
def test_the_dump_says_what_each_rank_holds(runs):
    one, two = dump(runs / "one"), dump(runs / "two")
    assert two["effective"]["shard"] == {"status": "applied", "tp": 2, "text_encoding.tp": 2}
    (whole,) = (rank["weights_mb"] for rank in one["ranks"])
    parts = [rank["weights_mb"] for rank in two["ranks"]]
    assert len(parts) == 2
    assert all(part - VAE_MB == pytest.approx((whole - VAE_MB) / 2, rel=0.1) for part in parts)
    assert two["effective"]["lora"]["adapters"] == one["effective"]["lora"]["adapters"]

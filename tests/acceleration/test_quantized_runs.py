"""Whole runs with quantized models: what the dump says of them, and LoRAs, which are merged before."""

import json
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from tiny import Quiet

from difftool.builtin.styles import STYLES
from difftool.engine import Kept, run_plan
from difftool.errors import PlanError
from difftool.launch import open_records
from difftool.parallel.world import World
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe

SHAPES = {"path": "builtin:shapes-image"}
NEAR = 10 ** (-30 / 20)  # a PSNR of 30, which the tier `near` asks for


def run(folder, *, model=SHAPES, stages=None, cache="none", **sampling):
    """The perf dump and the pixels of a run in this process."""
    recipe = {
        "model": model,
        "stages": stages or {},
        "cache": cache,
        "sampling": {"prompt": "a red circle", "seed": 7, **sampling},
        "launch": {"device": "cpu", "threads": 1},
        "output": {"dir": str(folder), "name": "made", "format": "npz"},
    }
    records = open_records(make_plan(load_recipe(recipe), run=RunOptions()))
    threads = torch.get_num_threads()
    try:
        with ExitStack() as ends:
            run_plan(records / "plan.json", Quiet(), 0.0, World(), Kept(ends))
    finally:
        torch.set_num_threads(threads)
    with np.load(folder / "made.npz") as made:
        return json.loads((records / "perf.json").read_text()), made["pixels"]


def picture(pixels):
    """[C, H, W] in [0, 1] -> [H, W, C] bytes."""
    return (np.moveaxis(pixels, 0, -1) * 255).round().astype(np.uint8)


def root_mean_square(numbers):
    return float(np.sqrt(np.mean(numbers**2)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(tmp_path_factory.mktemp("plain"))


def test_the_dump_says_what_was_quantized_and_the_picture_is_near(tmp_path, plain):
    weights = {"name": "int8", "activations": "none"}
    dump, pixels = run(
        tmp_path, stages={"denoising": {"quantization": "fp8"}, "text_encoding": {"quantization": weights}}
    )
    said = dump["effective"]["quantization"]
    assert said.pop("status") == "applied" and said["transformer"]["name"] == "fp8"
    assert {record["name"] for name, record in said.items() if name != "transformer"} == {"int8"}
    for record in said.values():
        assert record["layers"] > 0 and record["bytes"]["after"] < record["bytes"]["before"]
    assert dump["ranks"][0]["weights_mb"] < plain[0]["ranks"][0]["weights_mb"]
    assert "quantization" not in plain[0]["effective"]
    assert 0 < root_mean_square(pixels - plain[1]) < NEAR


def test_a_lora_is_merged_into_full_weights_and_then_quantized(tmp_path):
    lora = {**SHAPES, "lora": ["builtin:outline"]}
    dump, pixels = run(tmp_path, model=lora, stages={"denoising": {"quantization": "int8"}})
    assert list(dump["effective"]).index("lora") < list(dump["effective"]).index("quantization")
    assert STYLES["outline"].shows(picture(pixels))


def test_a_pipeline_of_diffusers_is_quantized_too(tmp_path, plain):
    model = {**SHAPES, "backend": "diffusers"}
    dump, pixels = run(tmp_path, model=model, stages={"denoising": {"quantization": "int8"}})
    assert dump["effective"]["quantization"]["transformer"]["layers"] > 0
    assert 0 < root_mean_square(pixels - plain[1]) < NEAR


def test_what_cannot_be_quantized_ends_the_run(tmp_path):
    kept = {"name": "fp8", "keep_first_blocks": 99}
    with pytest.raises(PlanError, match="stages.denoising.quantization=fp8 leaves nothing to quantize"):
        run(tmp_path, stages={"denoising": {"quantization": kept}})

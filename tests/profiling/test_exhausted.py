"""Memory that ran out is told with what was held and asked for, and with what to change in the recipe at hand."""

from types import SimpleNamespace

import pytest
import torch

from difftool.errors import OutOfMemoryError
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.remedies import REMEDIES, remedies
from difftool.platforms.base import current
from difftool.profiling.exhausted import memory_told
from difftool.recipe.load import load_recipe

SHAPES = {"model": "builtin:shapes-image", "sampling": {"prompt": "a red circle", "seed": 7}}
DEV = {"model": "black-forest-labs/FLUX.1-dev", "sampling": {"prompt": "x", "seed": 7}}


class Card:
    """A CUDA device, as far as this is told of it."""

    name = "cuda"

    def memory(self):
        return {"allocated_mb": 72704.0, "peak_allocated_mb": 80896.0, "host_mb": 1.0, "peak_host_mb": 2.0}

    def describe(self):
        return {"name": "NVIDIA H100", "memory_mb": 81920}


def plan(recipe, **sections):
    return make_plan(load_recipe({**recipe, **sections}), run=RunOptions())


def told(error, platform, stage, recipe=DEV, **sections):
    with (
        pytest.raises(OutOfMemoryError) as caught,
        memory_told(plan(recipe, **sections), platform, SimpleNamespace(stage=stage, item=0)),
    ):
        raise error
    return caught.value


def test_a_card_is_told_with_what_it_holds_and_what_was_asked_for():
    text = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
    error = told(torch.OutOfMemoryError(text), Card(), "decoding")
    assert error.message == (
        "NVIDIA H100 ran out of memory: 71.0 GiB of 80.0 GiB held, at most 79.0 GiB, and 2.0 GiB more were asked for"
    )
    assert error.hint == (
        "--enable-cpu-offload, which sends the weights of every stage away while others run; or --vae-tiling, which "
        "decodes in tiles and blends them; or ask for less than 1024 x 1024 pixels"
    )
    assert error.exit_code == 5


def test_the_host_is_told_too_where_torch_really_fails_to_allocate():
    with (
        pytest.raises(OutOfMemoryError, match=r"GiB held, at most .* GiB, and 1048576\.0 GiB more were asked for$"),
        memory_told(plan(SHAPES), current("cpu"), SimpleNamespace(stage="denoising", item=0)),
    ):
        torch.empty(2**50, dtype=torch.uint8)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you")])
def test_an_error_that_names_no_number_is_told_without(error):
    assert told(error, Card(), "denoising").message.endswith("held, at most 79.0 GiB")


def test_other_errors_are_left_as_they_are():
    with (
        pytest.raises(RuntimeError, match="shapes"),
        memory_told(plan(SHAPES), current("cpu"), SimpleNamespace(stage="denoising", item=0)),
    ):
        raise RuntimeError("shapes")


AWAY, STREAM, SHARED = "--enable-cpu-offload", "--enable-layerwise-offload", "--num-gpus N --use-hsdp"
INT8 = "--set stages.denoising.quantization=int8"
EVERY = {role: {"offload": "after_use"} for role in ("text_encoding", "denoising", "decoding")}
CASES = [
    (DEV, {}, "load", "cuda", [AWAY, STREAM, SHARED, INT8]),
    (DEV, {"parallel": {"num_gpus": 2, "hsdp": "all"}}, "load", "cuda", [AWAY, INT8]),
    (DEV, {"stages": EVERY}, "denoising", "cuda", [STREAM, SHARED, INT8]),
    (DEV, {"stages": {**EVERY, "denoising": {"offload": "layerwise"}}}, "denoising", "cuda", [SHARED, INT8]),
    (DEV, {"stages": {"denoising": {"quantization": "fp8"}}}, "denoising", "cuda", [AWAY, STREAM, SHARED]),
    (
        *(DEV, {"stages": {"text_encoding": {"precision": "fp32"}}}, "text_encoding", "cuda"),
        [AWAY, "--text-encoder-precisions"],
    ),
    (DEV, {"stages": {**EVERY, "decoding": {"offload": "after_use", "tiling": "on"}}}, "decoding", "cuda", []),
    (SHAPES, {}, "denoising", "cpu", [AWAY, STREAM, "--dit-precision bf16", INT8]),
    (SHAPES, {"stages": {"decoding": {"precision": "bf16"}}}, "decoding", "cpu", [AWAY, "--vae-tiling"]),
]


@pytest.mark.parametrize(("recipe", "sections", "stage", "device", "starts"), CASES)
def test_remedies_are_those_that_the_recipe_leaves_and_the_stage_needs(recipe, sections, stage, device, starts):
    found = remedies(plan(recipe, **sections), stage, device, None)
    lines = found.split("; or ") if found else []
    assert len(lines) == len(starts) and all(line.startswith(start) for line, start in zip(lines, starts, strict=True))


def test_every_remedy_is_in_a_case_and_its_flags_are_ours():
    from typer.main import get_command

    from difftool.cli.main import app

    seen = {start for *_, starts in CASES for start in starts} | {"--vae-precision"}
    assert all(any(remedy.text.startswith(start) for start in seen) for remedy in REMEDIES)
    known = {option for param in get_command(app).commands["generate"].params for option in param.opts}
    words = {word.rstrip(",") for remedy in REMEDIES for word in remedy.text.split() if word.startswith("--")}
    assert words <= known | {"--set"}

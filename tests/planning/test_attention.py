"""What a plan says of attention: what the model lacks, what a backend cannot do anywhere, and what `auto` means."""

import itertools
import json
from importlib import metadata

import pytest

from difftool.errors import RecipeError
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe

DEV, WAN, LTX = "black-forest-labs/FLUX.1-dev", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Lightricks/LTX-Video"
SPARSE = {"name": "video_sparse_attn", "sparsity": 0.5}
MOBA = {"temporal_chunk_size": 2, "spatial_chunk_size": [3, 4], "st_chunk_size": [4, 6, 4]}
CHUNKS = {"name": "vmoba_attn", "moba_config": MOBA}
TWO = {"num_gpus": 2, "ulysses": 2}
KEY = "stages.denoising.attention"


def plan(model, attention, **sections):
    recipe = {
        "model": model,
        "stages": {"denoising": {"attention": attention}},
        "sampling": {"prompt": "a"},
        **sections,
    }
    return make_plan(load_recipe(recipe), run=RunOptions())


@pytest.mark.parametrize(
    ("model", "attention", "parallel", "message"),
    [
        (DEV, {"cross": "flex"}, {}, f"{KEY}.cross: FLUX.1 has no cross-attention of its own; leave it out"),
        (
            DEV,
            {"components": {"transformer": {"cross": "flex"}}},
            {},
            f"{KEY}.components.transformer.cross: FLUX.1 has no cross-attention of its own; leave it out",
        ),
        (
            DEV,
            {"components": {"transformer_2": "flex"}},
            {},
            f"{KEY}.components.transformer_2: FLUX.1 has no such denoiser; it has transformer",
        ),
        (
            LTX,
            {"cross": "fa2"},
            {},
            f"{KEY}=fa2, for cross-attention of transformer: fa2 takes no masks, and this attention needs one; "
            "use torch_sdpa",
        ),
        (
            "builtin:shapes-image",
            "sage_attn_3",
            {},
            f"{KEY}=sage_attn_3, for self-attention of transformer: sage_attn_3 takes heads in multiples of 64, up to "
            "128 wide, and these are 32 wide; use torch_sdpa",
        ),
        (
            WAN,
            "fa4",
            {"num_gpus": 2, "ring": 2},
            f"{KEY}=fa4, for self-attention of transformer: fa4 does not tell the log-sum-exp by which parallel.ring "
            "puts parts together; use torch_sdpa",
        ),
        (
            WAN,
            SPARSE,
            TWO,
            f"{KEY}=video_sparse_attn, for self-attention of transformer: video_sparse_attn needs all tokens and heads "
            "on one rank, so parallel.sp=1 and tp=1; use torch_sdpa",
        ),
        (
            DEV,
            SPARSE,
            {},
            f"{KEY}=video_sparse_attn, for self-attention of transformer: video_sparse_attn leaves out parts of a "
            "video in self-attention, and this attention is none of a video's tokens; use torch_sdpa",
        ),
        *(
            (
                WAN,
                CHUNKS,
                {"num_gpus": 2, **degrees},
                f"{KEY}=vmoba_attn, for self-attention of transformer: vmoba_attn needs all tokens and heads on one "
                "rank, so parallel.sp=1 and tp=1; use torch_sdpa",
            )
            for degrees in ({"ulysses": 2}, {"ring": 2}, {"tp": 2})
        ),
        (
            DEV,
            CHUNKS,
            {},
            f"{KEY}=vmoba_attn, for self-attention of transformer: vmoba_attn leaves out parts of a video in "
            "self-attention, and this attention is none of a video's tokens; use torch_sdpa",
        ),
        (
            WAN,
            {"cross": CHUNKS},
            {},
            f"{KEY}=vmoba_attn, for cross-attention of transformer: vmoba_attn leaves out parts of a video in "
            "self-attention, and this attention is none of a video's tokens; use torch_sdpa",
        ),
        (
            LTX,
            {"self": {**CHUNKS, "moba_config": {**MOBA, "first_full_step": 50}}},
            {},
            f"{KEY}: moba_config.first_full_step=50 leaves none of 50 steps to vmoba_attn; lower it",
        ),
        (
            WAN,
            {**CHUNKS, "moba_config": {**MOBA, "first_full_layer": 30}},
            {},
            f"{KEY}: moba_config.first_full_layer=30 leaves none of 30 layers to vmoba_attn; lower it",
        ),
    ],
)
def test_what_no_machine_can_do_is_refused(model, attention, parallel, message):
    with pytest.raises(RecipeError) as error:
        plan(model, attention, parallel=parallel)
    assert [problem.message for problem in error.value.problems] == [message]


@pytest.mark.parametrize(
    ("model", "attention"),
    [
        (WAN, {"self": SPARSE, "cross": "flex"}),
        (WAN, SPARSE),  # of the video; the attention to the text is left to auto
        (WAN, {**CHUNKS, "moba_config": {**MOBA, "first_full_step": 49, "first_full_layer": 29}}),
        (LTX, {"name": "fa2", "cross": "torch_sdpa"}),
        (WAN, {"components": {"transformer": "cudnn", "transformer_2": {"name": "fa", "cross": "flex"}}}),
        ("builtin:shapes-image", "fa3"),  # on another machine
    ],
)
def test_what_some_machine_can_do_is_planned(model, attention):
    assert plan(model, attention).stages["denoising"]["attention"] != "auto"


@pytest.mark.parametrize(
    ("attention", "installed", "device", "value"),
    [
        ("auto", (), "auto", "torch_sdpa"),
        ("auto", ("flash-attn",), "auto", "fa2 on CUDA, else torch_sdpa"),
        (
            "auto",
            ("flash-attn", "flash-attn-3", "amd-aiter"),
            "cuda",
            "fa3 or fa2 on CUDA, aiter on ROCm, else torch_sdpa",
        ),
        ("auto", ("flash-attn",), "cpu", "torch_sdpa"),
        ({"self": "flex"}, (), "auto", None),
        ("torch_sdpa", (), "auto", None),
    ],
)
def test_a_plan_says_what_auto_comes_to(attention, installed, device, value, monkeypatch):
    real = metadata.version

    def version(name):
        if name.startswith(("flash", "sage", "amd-aiter", "aiter")) and name not in installed:
            raise metadata.PackageNotFoundError(name)
        return "9.9" if name in installed else real(name)

    monkeypatch.setattr(metadata, "version", version)
    choices = {choice.key: choice.value for choice in plan(DEV, attention, launch={"device": device}).choices}
    assert choices.get(KEY) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no mask file: [Errno 2]"),
        ("[]", "is no mask file: "),
        ('{"0_0_0": 3}', "is no mask file: "),
        ('{"0_0_0": [3, 3, 3]}', "has no window for step 0, layer 0, head 1; the denoiser has 30 layers of 12 heads"),
        (30, "has windows for 49 steps, and this item has 50; set sampling.num_inference_steps=49"),
    ],
)
def test_a_mask_file_that_is_not_for_this_run_is_refused_before_weights_are_read(text, message, tmp_path):
    file = tmp_path / "masks.json"
    if isinstance(text, int):
        keys = itertools.product(range(49), range(text), range(12))
        text = json.dumps({f"{step}_{layer}_{head}": [3, 3, 3] for step, layer, head in keys})
    if text is not None:
        file.write_text(text)
    with pytest.raises(RecipeError) as error:
        plan(WAN, {"name": "sliding_tile_attn", "mask_strategy_file_path": str(file)})
    (problem,) = error.value.problems
    assert f"mask_strategy_file_path: {file} {message}" in problem.message

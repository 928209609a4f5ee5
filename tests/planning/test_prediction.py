"""What `difftool plan` predicts: memory and communication of every rank, and scaling, from a model's numbers alone."""

import json
import struct

import pytest

from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.render import render_plan
from difftool.recipe.load import load_recipe
from difftool.recipe.overrides import Override

VIDEO = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
PICTURE = "Qwen/Qwen-Image-2512"
SHAPES = "builtin:shapes-image"


def plan(model, **asked):
    """`asked` by recipe key, with __ for the dot."""
    given = {"sampling.prompt": "x", **{key.replace("__", "."): value for key, value in asked.items()}}
    overrides = [Override(key, value, "test") for key, value in given.items()]
    return make_plan(load_recipe(model, overrides), run=RunOptions(preview=True))


def predicted(model, **asked):
    return plan(model, **asked).prediction


def sent(rank):
    return {(each.line, each.collective): (each.calls, each.bytes) for each in rank.step}


def test_one_rank_sends_nothing_and_is_compared_with_nothing():
    found = predicted(VIDEO, launch__device="cuda")
    assert (found.lines, found.scaling, [rank.step for rank in found.ranks]) == ({}, (), [()])
    assert set(found.ranks[0].weights) == {"transformer", "transformer_2", "text_encoder", "vae"}


def test_a_run_holds_no_prediction():
    overrides = [Override("sampling.prompt", "x", "test")]
    assert make_plan(load_recipe(SHAPES, overrides), run=RunOptions()).prediction is None


def test_parts_that_are_a_token_longer_send_more():
    """5 x 4 tokens of a picture and 12 of a text in fp32, of which the ranks have 11, 11 and 10; two branches of 8
    attentions of width 128.
    """
    found = predicted(
        SHAPES,
        parallel__ring=3,
        parallel__num_gpus=3,
        sampling__height=80,
        sampling__width=64,
        launch__device="cpu",
    )
    assert found.tokens == {"image": 20, "text": 12}
    token = 2 * 128 * 4
    # two messages an attention: what this rank has, then what came from the one before
    own = [11, 11, 10]
    each = [2 * 8 * (own[i] + own[i - 1]) * token for i in range(3)]
    assert [sent(rank)["ring", "send"] for rank in found.ranks] == [(2 * 16, size) for size in each]
    assert [sent(rank)["ring", "all_gather"] for rank in found.ranks] == [(2, 2 * 2 * 7 * 128 * 4)] * 3


def test_precision_decides_about_bytes():
    wide, half = (predicted(SHAPES, parallel__num_gpus=2, launch__device=device) for device in ("cpu", "cuda"))
    for one, other in zip(wide.ranks, half.ranks, strict=True):
        assert one.weights == {name: 2 * size for name, size in other.weights.items()}
        assert [each.bytes for each in one.item] == [2 * each.bytes for each in other.item]
    assert (wide.precision, half.precision) == ("fp32", "bf16")
    assert wide.scaling == () and len(half.scaling) == 2


def test_a_quantized_denoiser_is_about_half_as_large_and_the_page_says_so():
    key = "stages__denoising__quantization"
    whole, half = (predicted(PICTURE, **{key: name}).ranks[0].weights for name in ("none", "fp8"))
    assert half["transformer"] / whole["transformer"] == pytest.approx(0.5, abs=0.01)
    assert {**half, "transformer": 0} == {**whole, "transformer": 0}
    kept = {"name": "int8", "keep_first_blocks": 6, "exclude": ["*.to_q"]}
    assert "the denoiser in bf16, at most 756 of the 840 layers of its blocks in int8\n" in render_plan(
        plan(PICTURE, **{key: kept, "launch__device": "cuda"})
    )
    encoders = predicted(PICTURE, stages__text_encoding__quantization="int8").ranks[0].weights
    assert encoders["text_encoder"] is None  # not known without its files


def test_the_parts_of_tensor_parallel_and_of_shared_weights_are_about_half():
    whole = predicted(PICTURE).ranks[0].weights["transformer"]
    tp = predicted(PICTURE, parallel__num_gpus=2, parallel__tp=2).ranks
    shared = predicted(PICTURE, parallel__num_gpus=2, parallel__hsdp="all").ranks
    assert [rank.weights["transformer"] / whole for rank in tp] == pytest.approx([0.5, 0.5], abs=0.01)
    assert sum(rank.weights["transformer"] for rank in shared) == whole
    assert sent(shared[0])["hsdp", "all_gather"][0] == 61 * 2  # blocks and the rest, for two branches


def test_a_text_encoder_that_is_split_keeps_what_is_not_dealt_out_whole():
    asked = {"parallel__num_gpus": 2, "parallel__tp": 2}
    whole, half = (
        predicted(PICTURE, **asked, **{"stages__text_encoding__tp": tp}).ranks[0].weights["text_encoder"]
        for tp in (1, 2)
    )
    assert (whole, half) == (2 * 8_292_166_656, 2 * 5_029_457_920)


def test_a_text_whose_length_is_not_known_is_the_longest_one():
    assert not predicted(PICTURE).exact and predicted(VIDEO).exact
    assert predicted(PICTURE, sampling__max_sequence_length=100).tokens["text"] == 100


def test_lines_that_cross_machines_are_as_slow_as_what_is_between_them():
    asked = {"parallel__num_gpus": 16, "parallel__cfg": 2, "parallel__ulysses": 8, "launch__device": "cuda"}
    one = predicted(VIDEO, **asked)
    two = predicted(VIDEO, **asked, launch__nnodes=2, launch__rdzv_endpoint="node0:29500")
    assert [each.link for each in one.scaling] == ["NVLink", "PCIe"]
    assert [each.link for each in two.scaling] == ["NVLink and InfiniBand", "NVLink and Ethernet"]
    # only the branches' line crosses: one message of 9.7 MB more slowly
    size, nvlink = 16 * 21 * 90 * 160 * 2, one.scaling[0].waiting_s
    slower = [size / 50e9 + 75e-6 - size / 350e9 - 65e-6, size / 25e9 + 100e-6 - size / 350e9 - 65e-6]
    assert [each.waiting_s - nvlink for each in two.scaling] == pytest.approx(slower)


def test_files_that_are_here_are_counted(tmp_path):
    header = {"a": {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 60]}, "__metadata__": {"x": "y"}}
    text = json.dumps(header).encode()
    (tmp_path / "mine.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(60))
    (tmp_path / "config.json").write_text("{}")
    own = plan(SHAPES, model__components={"vae": {"path": str(tmp_path / "mine.safetensors")}}, launch__device="cpu")
    assert own.prediction.ranks[0].weights["vae"] == 60
    elsewhere = plan(SHAPES, model__components={"text_encoder": {"path": "someone/clip"}}, launch__device="cpu")
    assert elsewhere.prediction.ranks[0].weights["text_encoder"] is None


def test_nothing_is_predicted_of_a_family_that_says_nothing():
    assert plan("AIDC-AI/Ovis-Image-7B").prediction is None

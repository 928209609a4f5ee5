"""A run whose ranks share the denoiser's weights: the files of one rank, in step to the end, with less on each rank."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from tiny import difftool, read_json

SHAPES = "builtin:shapes-image"
SHORT = ("--num-inference-steps", 2, "--device", "cpu", "-s", "perf.warmup=1")


def media(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.png")}


def held(dump):
    return [rank["weights_mb"] for rank in read_json(dump)["ranks"]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with three pictures made by one rank in `1`, and by two that share weights in `2`."""
    folder = tmp_path_factory.mktemp("shared")
    lines = [{"id": f"p{i}", "prompt": text} for i, text in enumerate(("a red circle", "a blue star", "a green ring"))]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name, ranks in (("1", ()), ("2", ("--num-gpus", 2, "--use-hsdp"))):
        request = [SHAPES, "--prompt-file", "prompts.jsonl", *SHORT, *ranks, "-o", f"{name}/"]
        done = difftool("generate", *request, "--perf-dump-path", f"{name}.json", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_replicas_that_share_weights_make_the_files_of_one_rank(runs):
    made = media(runs / "2")
    assert len(made) == 3 and made == media(runs / "1")


@pytest.mark.slow
def test_what_a_replica_makes_to_keep_in_step_is_neither_saved_nor_reported(runs):
    dump = read_json(runs / "2.json")
    assert [(sample["item"], len(sample["outputs"])) for sample in dump["samples"]] == [(0, 1), (1, 1), (2, 1)]
    assert [(rank["rank"], rank["samples"]) for rank in dump["ranks"]] == [(0, 2), (1, 1)]
    assert dump["effective"]["shard"] == {"status": "applied", "dp": 2, "hsdp": 2}


@pytest.mark.slow
def test_each_rank_holds_half_of_the_denoiser(runs):
    (whole,), shared = held(runs / "1.json"), held(runs / "2.json")
    denoiser = 10.7  # MiB in fp32 of the 14.7 MiB of all parts
    assert shared == pytest.approx([whole - denoiser / 2] * 2, abs=0.1)


@pytest.mark.slow
def test_a_run_that_is_taken_up_keeps_in_step_with_fewer_items_than_ranks(runs):
    expected = media(runs / "2")
    (runs / "2" / min(expected)).unlink()
    request = [SHAPES, "--prompt-file", "prompts.jsonl", *SHORT, "--num-gpus", 2, "--use-hsdp", "-o", "2/", "--resume"]
    done = difftool("generate", *request, cwd=runs)
    assert done.returncode == 0, done.stderr
    assert "2 items are there, 1 to make" in done.stderr
    assert media(runs / "2") == expected


@pytest.mark.slow
def test_two_replicas_of_two_ranks_share_one_copy_and_tiles(tmp_path):
    sizes = ("--height", 128, "--width", 128, "--vae-tiling")
    for name, ranks in (("1", ()), ("4", ("--num-gpus", 4, "--dp-size", 2, "--ulysses-degree", 2, "--use-hsdp"))):
        request = [SHAPES, "-p", "a green triangle", *SHORT, *sizes, *ranks, "-o", f"{name}/"]
        done = difftool("generate", *request, "--perf-dump-path", f"{name}.json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    (one,), (four,) = ((tmp_path / name).glob("*.png") for name in "14")
    difference = np.asarray(Image.open(one), np.int16) - np.asarray(Image.open(four), np.int16)
    assert abs(difference).max() <= 1  # of 255: keys come in another order
    dump = read_json(tmp_path / "4.json")
    assert dump["effective"]["vae"] == {"status": "applied", "tiling": "on", "slicing": False, "ranks": 2}
    quarter = held(tmp_path / "1.json")[0] - 10.7 * 3 / 4
    assert held(tmp_path / "4.json") == pytest.approx([quarter] * 4, abs=0.1)

"""Attention backends through the command: what cannot run here is refused, what runs is told by part."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny import difftool

REQUEST = ("generate", "shapes-image", "-p", "a red circle", "--num-inference-steps", 4, "-o", "made/")


@pytest.mark.parametrize(
    ("name", "reason", "install"),
    [
        (
            "fa3",
            "fa3 runs on CUDA, and this is a CPU; needs flash-attn-3, which is not installed",
            "pip install 'git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper' --no-build-isolation",
        ),
        pytest.param(
            "sage_attn",
            "sage_attn runs on CUDA, and this is a CPU; needs sageattention, which is not installed",
            "pip install 'git+https://github.com/thu-ml/SageAttention' --no-build-isolation",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_backend_that_cannot_run_here_ends_with_the_reason_and_how_to_install_it(name, reason, install, tmp_path):
    done = difftool(*REQUEST, "--attention-backend", name, cwd=tmp_path)
    where = f"error: stages.denoising.attention={name}, for self-attention of transformer: "
    assert (done.returncode, done.stdout) == (3, "")
    assert f"{where}{reason}; install: {install}" in done.stderr
    assert not list((tmp_path / "made").glob("*.png"))


@pytest.mark.slow
def test_what_each_part_attends_through_is_in_the_dump(tmp_path, commanded):
    text = ("--set", "stages.text_encoding.attention=torch_sdpa")
    done = difftool(*REQUEST, "--attention-backend", "flex", *text, "--seed", 7, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (dump,) = (tmp_path / "made").glob(".difftool/*/perf.json")
    encoding = {"text_encoder": "torch_sdpa", "text_encoder_2": "torch_sdpa"}
    assert json.loads(dump.read_text())["effective"]["attention"] == {
        "status": "applied",
        "transformer": {"self": "flex"},
        **encoding,
    }
    (made,) = (tmp_path / "made").glob("*.png")
    one, other = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (made, commanded[0]))
    assert abs(one - other).max() <= 1


@pytest.mark.slow
def test_what_a_sparse_backend_left_out_is_in_the_dump(tmp_path):
    windows = {f"{step}_{layer}_{head}": [1, 1, 1] for step in range(2) for layer in range(12) for head in range(12)}
    (tmp_path / "masks.json").write_text(json.dumps(windows))
    (tmp_path / "video.yaml").write_text(
        "model: builtin:shapes-video\nsampling: {prompt: a red circle, num_frames: 33, num_inference_steps: 2}\n"
        "stages: {denoising: {attention: {name: sliding_tile_attn, mask_strategy_file_path: masks.json}}}\n"
    )
    done = difftool("generate", "video.yaml", "-o", "made/", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (dump,) = (tmp_path / "made").glob(".difftool/*/perf.json")
    told = json.loads(dump.read_text())["effective"]["attention"]["transformer"]
    file = str(tmp_path / "masks.json")
    assert told["self"] == {"name": "sliding_tile_attn", "mask_strategy_file_path": file, "kernel": "flex"}
    assert told["cross"] == "torch_sdpa"
    assert 0 < told["video"]["visited_blocks"] < told["video"]["blocks"]


@pytest.mark.slow
def test_chunks_of_a_video_run_through_the_command(tmp_path):
    chunks = "{temporal_chunk_size: 1, spatial_chunk_size: [2, 4], st_chunk_size: [2, 2, 2], first_full_step: 1}"
    (tmp_path / "video.yaml").write_text(
        "model: builtin:shapes-video\nsampling: {prompt: a red circle, num_frames: 33, num_inference_steps: 2}\n"
        f"stages: {{denoising: {{attention: {{name: vmoba_attn, moba_config: {chunks}}}}}}}\n"
    )
    lower = ("--set", "stages.denoising.attention.moba_config.moba_threshold=0.2")
    done = difftool("generate", "video.yaml", *lower, "-o", "made/", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (dump,) = (tmp_path / "made").glob(".difftool/*/perf.json")
    told = json.loads(dump.read_text())["effective"]["attention"]["transformer"]
    assert told["self"]["name"] == "vmoba_attn" and told["cross"] == "torch_sdpa"
    assert told["self"]["moba_config"]["moba_threshold"] == 0.2
    assert told["video"]["blocks"] / 2 < told["video"]["visited_blocks"] < told["video"]["blocks"]

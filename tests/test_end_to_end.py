"""The whole command as a user runs it: `python -m difftool generate`, real worker, real weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from subprocess import PIPE

import jsonschema
import numpy as np
import pytest
import torch
from families.cases import CASES
from media.reading import embedded
from PIL import Image
from tiny import RECORDS, ROOT, difftool, read_json

from difftool.builtin.shapes import Scene, is_right
from difftool.report.perf import json_schema, read_perf

SHAPES = "builtin:shapes-image"
RED_CIRCLE = Scene("circle", "red", "white", "")
TOKEN = "hf_" + "canary" * 6
TOKENS = {"HF_TOKEN": TOKEN, "HUGGING_FACE_HUB_TOKEN": TOKEN}


@pytest.fixture(scope="module")
def red(tmp_path_factory):
    """The quickstart's run: its folder, with red.png and perf.json."""
    folder = tmp_path_factory.mktemp("red")
    done = difftool(
        "generate",
        SHAPES,
        "-p",
        "a red circle",
        "--seed",
        7,
        "-o",
        "red.png",
        "--perf-dump-path",
        "perf.json",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "red.png\n"
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny FLUX.1 on disk."""
    folder = tmp_path_factory.mktemp("models") / "tiny-flux"
    CASES[1].build().save_pretrained(folder)
    return folder


@pytest.fixture
def pinned():
    """Sets the thread count, which is put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def tiny_run(checkpoint, cwd, *arguments, **environment):
    """A short run of the tiny checkpoint."""
    request = ["-p", "x", "--height", 32, "--width", 32, "--num-inference-steps", 2, "--max-sequence-length", 8]
    return difftool("generate", checkpoint, *request, *arguments, cwd=cwd, **environment)


@pytest.fixture(scope="module")
def measured(checkpoint, tmp_path_factory):
    """A folder with x.jpg of the tiny checkpoint, whose VAE is named too, measured where the shell holds a token."""
    folder = tmp_path_factory.mktemp("measured")
    counts = ("--repeats", 3, "--warmup", 1, "--perf-dump-path", "perf.json")
    done = tiny_run(checkpoint, folder, *counts, "--vae-path", checkpoint, "-o", "x.jpg", **TOKENS)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return folder


def test_the_picture_is_what_the_prompt_says(red):
    with Image.open(red / "red.png") as picture:
        assert picture.size == (64, 64) and is_right(RED_CIRCLE, np.asarray(picture))


def test_the_dump_holds_the_whole_run(red):
    jsonschema.validate(read_json(red / "perf.json"), json_schema())
    dump = read_perf(red / "perf.json")
    assert [step.name for step in dump.steps] == [
        "input_validation",
        "text_encoding",
        "latent_preparation",
        "timestep_preparation",
        "denoising",
        "decoding",
    ]
    assert [step.step for step in dump.denoise_steps_ms] == list(range(20))
    assert sum(step.duration_ms for step in dump.denoise_steps_ms) <= dump.stages_ms["denoising"]
    assert any(warn.code == "W-ACCOUNTING" for warn in dump.warnings) == (dump.measure.accounting_error_pct > 2)
    assert dump.samples[0].telemetry.load_average >= 0 and dump.samples[0].telemetry.clock_mhz is None
    assert len(set(dump.env["fingerprint"].values())) == 2
    assert dump.measure.load_ms > 0 and dump.measure.cold_start_ms > dump.measure.load_ms
    assert dump.effective["precision"]["transformer"] == "fp32"
    encoding = {"text_encoder": "torch_sdpa", "text_encoder_2": "torch_sdpa"}
    assert dump.effective["attention"] == {"status": "applied", "transformer": {"self": "torch_sdpa"}, **encoding}
    assert dump.samples[0].peak_memory_mb > 100
    assert dump.samples[0].flops == dump.cost.flops > 20 * 1e6  # the model that ships makes millions in a step
    assert dump.cost.peak_flops is None and dump.cost.mfu is None  # of a CPU nothing is published
    assert (red / dump.samples[0].outputs[0].path).resolve() == (red / "red.png").resolve()


def test_records_are_beside_the_picture(red):
    (run,) = (red / ".difftool").iterdir()
    assert sorted(path.name for path in run.iterdir()) == RECORDS
    assert sorted(path.name for path in red.iterdir()) == [".difftool", "perf.json", "red.png"]


def test_the_resolved_recipe_makes_the_same_bytes_again(red, tmp_path):
    (run,) = (red / ".difftool").iterdir()
    done = difftool("generate", run / "recipe.yaml", "-o", "again.png", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "again.png\n" and done.stderr == ""
    assert (tmp_path / "again.png").read_bytes() == (red / "red.png").read_bytes()


def test_the_picture_tells_how_it_was_made_and_no_secrets_of_the_machine(red):
    inside = embedded((red / "red.png").read_bytes())
    recipe = inside["recipe"]
    assert inside["versions"] == {name: metadata.version(name) for name in ("difftool", "torch", "diffusers")}
    assert recipe["sampling"]["prompt"] == "a red circle" and recipe["sampling"]["seed"] == 7
    assert recipe["model"]["path"] == SHAPES
    text = json.dumps(inside)
    assert str(red) not in text and str(ROOT) not in text
    assert set(recipe) == {"schema", "name", "extends", "model", "stages", "parallel", "cache", "sampling"}
    assert not any("offload" in stage for stage in recipe["stages"].values())


def test_stock_diffusers_draws_the_same_picture(red, pinned):
    from diffusers import FluxPipeline

    folder = ROOT / "difftool/builtin/shapes-image"
    pinned(read_json(next((red / ".difftool").iterdir()) / "plan.json")["threads"])
    stock = FluxPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    values = read_json(folder / "difftool.json")["sampling"]
    picture = stock(prompt="a red circle", generator=torch.Generator().manual_seed(7), **values).images[0]
    with Image.open(red / "red.png") as ours:
        assert np.array_equal(np.asarray(ours), np.asarray(picture))


def test_events_are_json_lines_and_formats_follow_the_name(tmp_path):
    done = difftool(
        "generate",
        SHAPES,
        "-p",
        "a blue star",
        "-p",
        "a green ring",
        "-s",
        "output.format=webp",
        "-o",
        "many/",
        "--json",
        "--num-inference-steps",
        2,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "started" and kinds[-1] == "finished" and kinds.count("step") == 4
    names = [Path(event["path"]).name for event in events if event["event"] == "output"]
    assert names == ["a_blue_star-42.webp", "a_green_ring-43.webp"]


def test_repeats_are_samples_and_warm_up_is_kept_apart(measured):
    dump = read_perf(measured / "perf.json")
    assert len(dump.samples) == 3 and len(dump.measure.warmup_ms) == 1 and dump.summary["total"].n == 3
    assert dump.summary["step"].n == 6 and dump.summary["save"].n == 1
    assert sorted(s.total_ms for s in dump.samples)[1] == dump.total_duration_ms
    assert not any(s.reused for s in dump.samples) and dump.summary["text_encoding"].n == 3


@pytest.mark.slow
def test_a_second_run_does_not_replace_the_first_picture(checkpoint, measured):
    first = (measured / "x.jpg").read_bytes()
    assert tiny_run(checkpoint, measured, "-o", "x.jpg").returncode == 0
    assert sorted(path.name for path in measured.glob("*.jpg")) == ["x-1.jpg", "x.jpg"]
    assert (measured / "x.jpg").read_bytes() == first


def damage(checkpoint, tmp_path, change):
    """A copy of the checkpoint with its transformer's weights changed."""
    copy = tmp_path / "damaged"
    shutil.copytree(checkpoint, copy)
    change(copy / "transformer" / "diffusion_pytorch_model.safetensors")
    return copy


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def make_pickle(path):
    torch.save({"weight": torch.zeros(2)}, path.with_suffix(".bin"))
    path.unlink()


@pytest.mark.parametrize(
    ("change", "words"), [(truncate, "is truncated: it promises"), (make_pickle, "is a pickle, which can run code")]
)
def test_bad_weights_end_the_run_with_exit_4(checkpoint, tmp_path, change, words):
    done = tiny_run(damage(checkpoint, tmp_path, change), tmp_path, "-o", "x.png", "--perf-dump-path", "perf.json")
    assert done.returncode == 4
    assert words in done.stderr and "hint:" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "x.png").exists()
    assert read_perf(tmp_path / "perf.json").status == "failed"


def test_a_missing_model_folder_is_told_before_anything_is_launched(tmp_path):
    done = difftool("generate", "./nowhere", "-p", "x", cwd=tmp_path)
    assert done.returncode == 2 and "nowhere" in done.stderr and "hint:" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_hub_token_is_written_nowhere(checkpoint, measured, tmp_path):
    refused = tiny_run(checkpoint, tmp_path, "--vae-path", "/nowhere", **TOKENS)
    plan = difftool("plan", checkpoint, "-p", "x", "--json", cwd=tmp_path, **TOKENS)
    assert refused.returncode and TOKEN not in refused.stdout + refused.stderr + plan.stdout + plan.stderr
    written = [path for folder in (measured, tmp_path) for path in folder.rglob("*") if path.is_file()]
    assert {"perf.json", "plan.json", "worker.log", "journal.jsonl"} <= {path.name for path in written}
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


def test_offline_nothing_is_fetched_and_the_way_to_fetch_is_told(tmp_path):
    cache = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": ""}
    model = "black-forest-labs/FLUX.1-schnell"
    done = difftool("generate", model, "-p", "x", "--offline", cwd=tmp_path, **cache)
    assert done.returncode == 4, done.stderr
    assert f"{model} is not on this machine, and nothing is fetched offline" in done.stderr
    assert f"hint: with a connection: difftool models fetch {model}" in done.stderr


def test_an_unwritable_folder_ends_with_exit_9(tmp_path):
    (tmp_path / "file").touch()
    done = difftool("generate", SHAPES, "-p", "x", "-o", "file/x.png", cwd=tmp_path)
    assert done.returncode == 9 and "cannot write" in done.stderr and "hint:" in done.stderr


@pytest.mark.slow
def test_storage_that_ends_keeps_what_is_finished_and_leaves_nothing_half_written(checkpoint, tmp_path):
    # the records fit under the limit of 64 KiB a file, and so does the first picture; the second does not
    command = [sys.executable, "-m", "difftool", "generate", "many.yaml", "--return-frames", "--no-save-output"]
    (tmp_path / "many.yaml").write_text(
        f"model: {checkpoint}\nsampling:\n  num_inference_steps: 1\n  max_sequence_length: 8\n  prompts:\n"
        "    - {id: small, prompt: x, height: 32, width: 32}\n    - {id: big, prompt: x, height: 128, width: 128}\n"
        'output: {dir: out, name: "{id}"}\n'
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 64; exec "$@"', "bash", *command],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 9, done.stderr
    assert "File too large" in done.stderr and "big.npz" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".difftool", "small.npz"]


@contextmanager
def run_that_is_denoising(folder):
    """A run that would take minutes, once it has made its first step: the command's process and its worker's pid."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "difftool", "generate", SHAPES, "-p", "a red circle", "--json", "-o", "x.png"]
    run = [*command, "--num-inference-steps", "100000"]
    with subprocess.Popen(run, cwd=folder, env=env, stdout=PIPE, stderr=PIPE, text=True) as process:
        assert process.stdout is not None
        worker = json.loads(process.stdout.readline())["pid"]
        while json.loads(process.stdout.readline())["event"] != "step":
            pass
        yield process, worker


def test_ctrl_c_ends_the_run_cleanly(tmp_path):
    with run_that_is_denoising(tmp_path) as (process, worker):
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(60) == 130
    assert not Path(f"/proc/{worker}").exists()
    assert [path.name for path in tmp_path.iterdir()] == [".difftool"]


def test_a_killed_worker_is_exit_6_with_its_cause_and_place(tmp_path):
    with run_that_is_denoising(tmp_path) as (process, worker):
        os.kill(worker, signal.SIGKILL)
        last = json.loads(process.stdout.read().splitlines()[-1])
        assert process.wait(60) == 6
    assert last["event"] == "error" and "SIGKILL" in last["message"] and "denoising" in last["message"]


def test_plan_answers_without_torch_and_in_no_time(tmp_path):
    (tmp_path / "r.yaml").write_text("model: builtin:shapes-image\nsampling: {prompt: a red circle}\n")
    done = difftool("plan", "r.yaml", cwd=tmp_path, PYTHONVERBOSE="")
    assert done.returncode == 0, done.stderr
    check = "import sys; from difftool.cli.main import main; main(['plan', 'r.yaml']); sys.exit('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    seen = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert seen.stdout == done.stdout and seen.returncode == 0

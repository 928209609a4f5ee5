"""The real command with a cache: what it reuses is in the dump and said at the end, and one that does nothing fails."""

import hashlib
import json

import pytest
from tiny import difftool, read_json

REQUEST = ("generate", "builtin:shapes-image", "--device", "cpu", "--num-inference-steps", "12", "-o", "made/")
ON = ("-s", "cache.backend=dbcache")


def perf_of(folder):
    (file,) = (folder / "made" / ".difftool").glob("*/perf.json")
    return read_json(file)


def test_a_cached_run_says_what_it_reused_and_the_library_says_nothing(tmp_path):
    prompts = [{"prompt": "a red circle", "seed": 7}, {"prompt": "a red circle", "seed": 7}]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    logs = {"CACHE_DIT_LOG_LEVEL": "debug", "CACHE_DIT_LOG_DIR": str(tmp_path / "logs")}
    done = difftool(*REQUEST, *ON, "-s", "sampling.prompts.file=same.jsonl", cwd=tmp_path, **logs)
    assert done.returncode == 0, done.stderr
    first, again = (tmp_path / line for line in done.stdout.splitlines())
    assert pixels(first) == pixels(again), "the second item has traces of the first"
    dump = perf_of(tmp_path)
    cache, sample = dump["effective"]["cache"], dump["effective"]["cache"]["samples"][0]
    assert cache["status"] == "applied" and cache["steps"] == 24 and cache["reused_steps"] > 0
    said = f"dbcache reused {cache['reused_steps']} of 24 steps ("
    assert said in done.stderr and f"{cache['flop_ideal_speedup']:.2f}x by FLOPs at best" in done.stderr
    (denoiser,) = sample["denoisers"].values()
    for step, timed in enumerate(dump["samples"][0]["denoise_steps_ms"]):
        reused = any(decisions[step] == "0" for decisions in denoiser["decisions"].values())
        assert timed["kind"] == ("cached" if reused else "compute")
        seen = [changes[step] for changes in denoiser["changes"].values()]
        assert all((change is None) == (step < 4) for change in seen if not reused), (step, seen)
    assert not (tmp_path / "logs").exists()
    (log,) = (tmp_path / "made" / ".difftool").glob("*/worker.log")
    assert "cache" not in log.read_text().lower()


def pixels(path):
    from PIL import Image

    return hashlib.sha256(Image.open(path).tobytes()).hexdigest()


@pytest.mark.slow
def test_a_cache_that_never_hits_fails_the_run_unless_that_is_accepted(tmp_path):
    never = (*REQUEST, "-p", "a red circle", *ON, "-s", "cache.residual_diff_threshold=1e-6")
    done = difftool(*never, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "cache.backend=dbcache reused 0 of 12 steps" in done.stderr and "raise the threshold" in done.stderr
    dump = perf_of(tmp_path)
    assert dump["status"] == "failed" and dump["effective"]["cache"]["hit_rate"] == 0
    accepted, plain = tmp_path / "accepted", tmp_path / "plain"
    for folder, arguments in (
        (accepted, (*never, "-s", "cache.min_hit_rate=0")),
        (plain, (*REQUEST, "-p", "a red circle")),
    ):
        folder.mkdir()
        assert difftool(*arguments, cwd=folder).returncode == 0
    made = [next((folder / "made").glob("*.png")) for folder in (accepted, plain)]
    assert pixels(made[0]) == pixels(made[1])


@pytest.mark.slow
def test_ranks_make_the_cached_picture_of_one(tmp_path):
    made = {}
    for name, degrees in (("one", ()), ("two", ("--num-gpus", "2", "--cfg-parallel-size", "2"))):
        folder = tmp_path / name
        folder.mkdir()
        done = difftool(*REQUEST, "-p", "a red circle", *ON, *degrees, cwd=folder)
        assert done.returncode == 0, done.stderr
        made[name] = (pixels(next((folder / "made").glob("*.png"))), perf_of(folder)["effective"]["cache"])
    assert made["one"][0] == made["two"][0]
    assert made["one"][1]["samples"][0]["denoisers"] == made["two"][1]["samples"][0]["denoisers"]


@pytest.mark.slow
def test_a_calibration_writes_a_recipe_that_reuses_about_every_second_step(tmp_path):
    asked = ("builtin:shapes-image", "--device", "cpu", "-p", "a red circle", "--num-inference-steps", "16")
    done = difftool("calibrate", *asked, "--degree", "1", "-o", "tea.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    fit, coefficients, threshold, path = done.stdout.splitlines()
    assert fit.startswith("15 changes, degree 1: R2 ") and path == "tea.yaml"
    assert len(coefficients.split(", ")) == 2 and threshold.endswith("which reuses about every second step")
    assert [path.name for path in tmp_path.iterdir()] == ["tea.yaml"], "the measured run left something behind"
    run = difftool("generate", "tea.yaml", "-o", "made/", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert 4 <= perf_of(tmp_path)["effective"]["cache"]["reused_steps"] <= 11
    assert "teacache reused" in run.stderr


def test_a_calibration_needs_a_place_for_its_recipe(tmp_path):
    done = difftool("calibrate", "builtin:shapes-image", "-p", "x", "-o", "no/where.yaml", cwd=tmp_path)
    assert done.returncode == 9 and "--output no/where.yaml: there is no folder" in done.stderr

"""scripts/bench_gpu.py on tiny shapes and a CPU: the code that measures true shapes on a GPU."""

import json
import os
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from tiny import ROOT

from difftool.components.fit import empty_model
from difftool.families.parts import VAE_16_CHANNELS, VAE_WAN
from difftool.platforms.base import current
from difftool.profiling.telemetry import Watch
from difftool.report.perf import read_perf

PARTS = ("models", "arms", "race", "report")
TINY = ("--tiny", "--device", "cpu", "--arms", "diffusers,difftool,difftool-cudnn", "--repeats", "3")


@pytest.fixture(scope="module")
def scripts():
    """The script and its parts, by what follows `bench_gpu_`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        return {"": import_module("bench_gpu"), **{name: import_module(f"bench_gpu_{name}") for name in PARTS}}


@pytest.fixture(scope="module")
def measured(scripts, tmp_path_factory):
    """Where a call left what it measured of two models, a picture's and a video's, with guidance and without."""
    out, threads = tmp_path_factory.mktemp("measured"), torch.get_num_threads()
    assert scripts[""].main([*TINY, "--models", "flux1-dev,wan2.1-1.3b", "--steps", "2", "--out", str(out)]) == 0
    torch.set_num_threads(threads)
    return out


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", ["flux1-dev", "wan2.1-1.3b"])
def test_every_arm_has_its_numbers_and_those_that_cannot_be_here_their_reason(measured, name):
    found = read(measured / f"{name}.json")
    assert list(found["arms"]) == ["diffusers", "difftool"]
    for arm in found["arms"].values():
        assert arm["step_ms"]["median"] > 0 and len(arm["readings_ms"]) == 3 and arm["first_run_ms"] > 0
        assert arm["flops_per_s"] == pytest.approx(found["flops_per_step"] / arm["step_ms"]["median"] * 1e3)
        assert arm["peak_flops"] is None and arm["mfu"] is None
    ratio = found["speedup"]["difftool"]["diffusers"]
    theirs, ours = (found["arms"][arm]["step_ms"]["median"] for arm in ("diffusers", "difftool"))
    assert ratio["ratio"] == pytest.approx(theirs / ours) and ratio["ci95"][0] <= ratio["ratio"] <= ratio["ci95"][1]
    assert list(found["left_out"]) == ["difftool-cudnn"]
    assert "cudnn runs on CUDA, and this is a CPU" in found["left_out"]["difftool-cudnn"]


def test_arms_take_turns_there_and_back(measured):
    assert read(measured / "flux1-dev.json")["order"] == ["diffusers", "difftool", "difftool", "diffusers"] + [
        "diffusers",
        "difftool",
    ]


@pytest.mark.parametrize("name", ["flux1-dev", "wan2.1-1.3b"])
def test_both_sides_make_the_same_latents_of_the_same_weights(measured, name):
    arms = read(measured / f"{name}.json")["arms"]
    assert [arms[arm]["difference"] for arm in ("diffusers", "difftool")] == [0.0, 0.0]


def test_dumps_hold_the_raw_samples_and_compare_with_each_other(measured, capsys):
    from difftool.cli.main import main

    dumps = [measured / "flux1-dev" / f"{arm}.json" for arm in ("diffusers", "difftool")]
    for file, backend in zip(dumps, ("diffusers", "auto"), strict=True):
        dump = read_perf(file)
        assert [len(sample.denoise_steps_ms) for sample in dump.samples] == [2, 2, 2]
        assert (dump.measure.order, len(dump.measure.warmup_ms)) == ("ABBA", 1)
        assert dump.recipe.resolved["model"]["backend"] == backend
        assert dump.effective["weights"]["status"] == "random" and dump.cost.flops > 0
    assert main(["compare-perf", *map(str, dumps), "--report-only"]) == 0
    assert "INCOMPARABLE" not in capsys.readouterr().out


def test_the_page_has_a_row_for_every_arm(measured):
    page = (measured / "report.md").read_text()
    assert "## flux1-dev" in page and "## wan2.1-1.3b" in page
    assert page.count("\n| diffusers |") == page.count("\n| difftool |") == 2
    assert "- `difftool-cudnn` was left out: " in page and "tiny shapes, which say nothing of the model" in page


def test_models_that_the_time_does_not_reach_are_named(scripts, tmp_path, capsys):
    assert scripts[""].main([*TINY, "--max-time", "0s", "--out", str(tmp_path)]) == 0
    known = ", ".join(scripts["models"].MODELS)
    assert f"Not reached in the time: {known}." in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_no_round_begins_that_would_end_after_the_time(scripts):
    race, now = scripts["race"], [0.0]

    class Turns(race.Race):
        def _made(self, names):
            return names

        def _warm(self, arms):
            return [race.Runner(arm, None, seconds=5.0) for arm in arms]

        def _turn(self, runner, number):
            now[0] += 5.0

    class Named:
        def __init__(self, name):
            self.name = name

    budget = race.Budget(34.0, clock=lambda: now[0])
    raced = Turns(None, budget, None, None, print).run([Named("a"), Named("b")], repeats=8)
    assert raced.order == ["a", "b", "b", "a", "a", "b"] and now[0] == 30.0
    assert budget.share(2).left() == 2.0


def test_an_arm_whose_first_run_fails_is_left_out_and_the_others_go_on(scripts, measured):
    race, arms, cpu = scripts["race"], scripts["arms"], current("cpu")
    latents = torch.ones(1, 4)

    def refuse(timer):
        raise torch._dynamo.exc.Unsupported("a graph break\nDeveloper debug context")

    def run(timer):
        with timer.sample(), timer.stage("denoising"):
            return latents

    plan = arms.planned("Qwen/Qwen-Image", "difftool", {}, device="cpu", repeats=1, label="x")
    given = [arms.Arm(name, arms.ARMS[name], plan, how, {}) for name, how in (("diffusers", refuse), ("difftool", run))]
    bench = arms.Bench(lambda arm: plan, "fp32", measured, cpu, {}, None)
    runner = race.Race(bench, race.Budget(60.0), Watch(), None, print)
    assert [each.arm.name for each in runner._warm(given)] == ["difftool"]
    assert runner.left_out == {"diffusers": "its first run fails: a graph break"}


def test_an_arm_that_makes_something_else_is_an_error(scripts):
    found = {"model": "m", "arms": {"a": {"difference": 0.001}, "b": {"difference": 0.2}, "c": {"difference": None}}}
    found["arms"]["c"]["difference"] = float("inf")
    assert [fault.partition(" are ")[0] for fault in scripts["report"].faults(found)] == [
        "m: the latents of b",
        "m: the latents of c",
    ]


@pytest.mark.parametrize("arguments", [["--device", "cpu"], ["--device", "cuda"], ["--tiny"]], ids=" ".join)
def test_without_a_gpu_it_says_how_to_try_it(scripts, capsys, accelerator, arguments):
    if accelerator and "cpu" not in arguments:
        pytest.skip("there is one")
    assert scripts[""].main(arguments) == 2
    assert "try the code with --tiny --device cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "denoiser", "vae"),
    [
        ("flux1-dev", 11_901_408_320, VAE_16_CHANNELS),
        ("z-image-turbo", 6_154_908_736, VAE_16_CHANNELS),
        ("qwen-image", 20_430_401_088, VAE_WAN),
        ("wan2.1-1.3b", 1_418_996_800, VAE_WAN),
    ],
)
def test_the_true_models_have_the_parameters_of_the_published_ones(scripts, tmp_path, name, denoiser, vae):
    import diffusers

    model, folder = scripts["models"].MODELS[name], tmp_path / name
    scripts["models"].write_configs(model, folder, tiny=False)
    counted = [
        sum(parameter.numel() for parameter in empty_model(getattr(diffusers, kind), folder / part).parameters())
        for part, kind in (("transformer", model.transformer), ("vae", model.vae))
    ]
    assert counted == [denoiser, vae]


@pytest.mark.slow
def test_what_compiles_is_warmed_up_and_timed_apart(tmp_path):
    arms = "diffusers-compile,difftool-compile"
    given = ["--tiny", "--device", "cpu", "--models", "wan2.1-1.3b", "--arms", arms, "--repeats", "1"]
    command = [sys.executable, ROOT / "scripts" / "bench_gpu.py", *given, "--out", tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "wan2.1-1.3b.json")["arms"]
    first, second = (found[arm] for arm in arms.split(","))
    assert first["first_run_ms"] > first["compile_ms"] > 10 * first["step_ms"]["median"]
    assert second["compile_ms"] < first["compile_ms"]  # its graphs are those of the first
    assert second["difference"] < 1e-4

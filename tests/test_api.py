"""The Python interface with the built-in model: the command's own bytes, one load for many requests, and recovery."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image
from tiny import ROOT

import difftool as package
from difftool.errors import RecipeError, WorkerCrashed

STEPS = {"sampling.num_inference_steps": 4}
COMMANDED = {"prompt": ["a red circle", "a blue star"], "seed": 7}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def session():
    with package.load("shapes-image", overrides=STEPS) as session:
        yield session


def test_a_session_makes_the_pictures_of_the_command(session, commanded):
    result = session.generate(**COMMANDED)
    assert result.seeds == [7, 8] and result.paths == [] and result.frames == []
    assert [image.tobytes() for image in result.images] == [Image.open(path).tobytes() for path in commanded]
    assert result.perf.status == "ok" and [sample.seed for sample in result.perf.samples] == [7, 8]


def test_a_recipe_with_an_output_section_writes_the_files_of_the_command(commanded, tmp_path):
    recipe = {"model": "builtin:shapes-image", "sampling": {"num_inference_steps": 4}, "output": {"dir": tmp_path}}
    with package.load(recipe, overrides={"output.on_collision": "overwrite", "name": "shapes-image"}) as session:
        result = session.generate(**COMMANDED)
        assert [path.name for path in result.paths] == [path.name for path in commanded]
    assert [sha256(path) for path in result.paths] == [sha256(path) for path in commanded]
    assert result.images[1].tobytes() == Image.open(commanded[1]).tobytes()


def test_the_second_request_loads_nothing_and_leaves_nothing(session):
    session.generate(prompt="a red circle")
    heard = []
    result = session.generate(prompt=["a blue star", "a green ring"], height=96, on_event=heard.append)
    assert [image.size for image in result.images] == [(64, 96)] * 2
    assert {"started", "load_started", "loaded"}.isdisjoint(event.event for event in heard)
    assert result.perf.measure.load_ms == 0.0
    assert result.perf.effective["precision"]["status"] == "applied"
    assert result.perf.env and list(session._folder.iterdir()) == []


def test_a_request_that_is_wrong_is_refused_and_costs_nothing(session):
    session.generate(prompt="a red circle")
    for key, value, message in (
        ("promt", "x", "generate(promt=…): error: sampling.promt: unknown recipe key, did you mean 'sampling.prompt'?"),
        ("height", "tall", "generate(height=…): error: sampling.height: 'tall' is not a whole number"),
        ("height", 65, "generate(height=…): error: sampling.height"),
    ):
        with pytest.raises(RecipeError) as caught:
            session.generate(**{"prompt": "a red circle", key: value})
        assert str(caught.value).startswith(message)
    assert session.generate(prompt="a red circle").perf.measure.load_ms == 0.0


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_one_request_and_the_next_makes_the_same_pixels(session):
    before = session.generate(prompt="a red circle").images[0].tobytes()
    pid = session._worker._worker._process.pid

    def kill(event):
        if event.event == "step" and event.step == 0:  # later ones may be heard when the process is gone
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(WorkerCrashed, match="killed by SIGKILL.* in denoising of item 0"):
        session.generate(prompt="a red circle", num_inference_steps=2000, on_event=kill)
    result = session.generate(prompt="a red circle")
    assert result.images[0].tobytes() == before and result.perf.measure.load_ms > 0


@pytest.mark.slow
def test_two_ranks_stay_and_make_the_pixels_of_one(session):
    prompts = ["a red circle", "a blue star", "a green ring"]
    one = session.generate(prompt=prompts)
    with package.load("shapes-image", overrides={**STEPS, "parallel.dp": 2}) as two:
        for load_again in (True, False):
            result = two.generate(prompt=prompts)
            assert [image.tobytes() for image in result.images] == [image.tobytes() for image in one.images]
            assert [rank.samples for rank in result.perf.ranks] == [2, 1]
            assert (result.perf.measure.load_ms > 0) is load_again


IMPORTS = """
import sys
import difftool
assert not {"torch", "diffusers", "numpy", "PIL", "pydantic"} & set(sys.modules), "importing"
difftool.load("shapes-image").close()
assert issubclass(difftool.errors.RecipeError, difftool.errors.DifftoolError)
assert difftool.Recipe(model="builtin:shapes-image").model.path and difftool.__version__
assert not {"torch", "diffusers", "numpy", "PIL"} & set(sys.modules), "loading"
"""


def test_neither_the_import_nor_opening_a_session_imports_torch():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", IMPORTS], env=environment, check=True, timeout=600)


@pytest.mark.slow
def test_a_profile_is_of_the_loaded_model_and_leaves_it_as_it_was(session):
    plain = session.generate(prompt="a red circle", seed=7)
    found = session.profile(steps=2, prompt="a red circle", seed=7)
    assert found.result.images[0].tobytes() == plain.images[0].tobytes() and found.result.perf.measure.load_ms == 0.0
    (trace,), profile = found.traces, found.result.perf.profile
    assert trace.is_relative_to(session._folder)  # which goes when the session is closed
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = {event["name"] for event in events if str(event.get("name")).startswith("step: ")}
    assert steps == {"step: 1", "step: 2"} and profile.steps == [1, 2]
    assert found.kernels == profile.kernels and found.kernels[0].ms >= found.kernels[-1].ms > 0
    assert found.kinds_ms == profile.kinds_ms and found.kinds_ms["matmul"] > 0
    again = session.generate(prompt="a red circle", seed=7)
    assert again.perf.profile is None and again.images[0].tobytes() == plain.images[0].tobytes()


@pytest.mark.slow
def test_traces_lie_where_the_output_section_says(tmp_path):
    recipe = {"model": "builtin:shapes-image", "sampling": {"num_inference_steps": 2}, "output": {"dir": tmp_path}}
    with package.load(recipe) as session:
        found = session.profile(all_stages=True, prompt="a red circle")
    assert found.traces[0].parent == tmp_path and found.traces[0].exists() and found.result.paths[0].exists()
    assert "text_encoding" in found.result.perf.profile.stages

"""Compiling as a transform: what auto means, what is refused, and what a run says of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from acceleration.test_quantized_runs import root_mean_square, run
from torch import nn
from torch._dynamo import register_backend
from torch._dynamo.backends.registry import list_backends

from difftool.acceleration import compilation
from difftool.components.loaded import Components
from difftool.errors import PlanError
from difftool.facts import Applied, Refused

CPU, CUDA = (SimpleNamespace(name=name, device=torch.device("cpu")) for name in ("cpu", "cuda"))
AUTO = {"text_encoding": "none", "denoising": "auto", "decoding": "none"}


@pytest.fixture
def eager(monkeypatch):
    """Graphs run as they were traced."""
    monkeypatch.setattr(compilation, "BACKEND", "eager")


@pytest.fixture
def broken(monkeypatch):
    """A machine without a compiler."""

    def without_compiler(graph, inputs):
        raise RuntimeError("no C++ compiler was found\nmore of it")

    if "without_compiler" not in list_backends(exclude_tags=()):
        register_backend(without_compiler, name="without_compiler")
    monkeypatch.setattr(compilation, "BACKEND", "without_compiler")


def test_auto_compiles_blocks_on_cuda_where_it_pays(eager):
    assert compilation.resolve(AUTO, CUDA, pays=True) == Applied({"denoising": "regional"})
    assert compilation.resolve(AUTO, CUDA, pays=False) == Applied({})
    assert compilation.resolve(AUTO, CPU, pays=True) == Applied({})


def test_without_a_compiler_auto_is_none_and_a_request_is_refused(broken):
    assert compilation.resolve(AUTO, CUDA, pays=True) == Applied({})
    refused = compilation.resolve({**AUTO, "decoding": "full"}, CPU, pays=False)
    assert isinstance(refused, Refused)
    assert refused.reason.startswith("stages.decoding.compile=full: nothing can be compiled here: ")
    assert "no C++ compiler was found" in refused.reason and "more of it" not in refused.reason
    assert refused.reason.endswith("; use stages.decoding.compile=none")


def compiled(module, role, mode, **more):
    arguments = {"alone": True, "backend": "eager", **more}
    return compilation.apply(
        Components({"it": module}, None), {role: ("it", "absent")}, Applied({role: mode}), **arguments
    )


def test_what_has_no_blocks_or_no_decoder_is_refused():
    with pytest.raises(PlanError, match="stages.denoising.compile=regional: it repeats no blocks; use .*=full"):
        compiled(nn.Linear(2, 2), "denoising", "regional")
    with pytest.raises(PlanError, match="decoding.compile=full: it is a Linear, without a decoder; use .*=none"):
        compiled(nn.Linear(2, 2), "decoding", "full")


def test_the_dump_says_what_was_compiled_and_keeps_the_time_apart(eager, tmp_path):
    plain, expected = run(tmp_path / "plain", num_inference_steps=2)
    dump, pixels = run(tmp_path / "compiled", stages={"denoising": {"compile": "regional"}}, num_inference_steps=2)
    said = dump["effective"]["compile"]
    assert said == {"status": "applied", "transformer": {"mode": "regional", "modules": 2 + 6, "fullgraph": True}}
    measured = dump["measure"]
    assert len(measured["warmup_ms"]) == 1 and 0 < measured["compile_ms"] < measured["warmup_ms"][0]
    assert plain["measure"]["compile_ms"] == 0 and plain["measure"]["warmup_ms"] == []
    assert "W-COMPILE" not in {warning["code"] for warning in dump["warnings"]}
    assert np.array_equal(pixels, expected)


@pytest.mark.slow
def test_a_cache_skips_compiled_blocks_as_it_skips_others(eager, tmp_path):
    plain, expected = run(tmp_path / "plain", cache="dbcache")
    dump, pixels = run(tmp_path / "compiled", stages={"denoising": {"compile": "regional"}}, cache="dbcache")
    assert dump["effective"]["compile"]["transformer"]["fullgraph"] is False
    kinds = [[step["kind"] for step in each["denoise_steps_ms"]] for each in (plain, dump)]
    assert kinds[0] == kinds[1] and "cached" in kinds[0]
    assert np.array_equal(pixels, expected)


@pytest.mark.slow
def test_sizes_that_the_warm_up_did_not_have_are_told(eager, tmp_path):
    prompts = [{"prompt": "a red circle"}, {"prompt": "a blue star", "height": 48}]
    stages = {"denoising": {"compile": "regional"}}
    dump, _ = run(tmp_path, stages=stages, prompt=None, prompts=prompts, num_inference_steps=1)
    (said,) = [warning["message"] for warning in dump["warnings"] if warning["code"] == "W-COMPILE"]
    assert said.startswith("torch.compile took ") and said.endswith("items of unlike sizes are compiled for anew")


def test_a_run_without_a_compiler_ends_before_weights_are_read(broken, tmp_path, monkeypatch):
    monkeypatch.setattr("difftool.pipeline.assemble.load_components", None)
    with pytest.raises(PlanError, match="stages.denoising.compile=full: nothing can be compiled here"):
        run(tmp_path, stages={"denoising": {"compile": "full"}})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # by torch itself
def test_inductor_makes_the_picture_of_torch(tmp_path, monkeypatch):
    """The real compiler, of the blocks and of the decoder."""
    # the user's own cache may hold what a killed process left half-written, or all there is to compile
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    _, expected = run(tmp_path / "plain", num_inference_steps=4)
    stages = {"denoising": {"compile": "regional"}, "decoding": {"compile": "full"}}
    dump, pixels = run(tmp_path / "compiled", stages=stages, num_inference_steps=4)
    assert set(dump["effective"]["compile"]) == {"status", "transformer", "vae"}
    assert 0 < dump["measure"]["compile_ms"] < dump["measure"]["warmup_ms"][0]
    assert 0 < root_mean_square(pixels - expected) < 1e-3  # rounding, in another order

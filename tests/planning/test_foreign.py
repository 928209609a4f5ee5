"""What planning reads of diffusers' pipelines in their source, without importing them."""

import inspect
import subprocess
import sys

import diffusers
import pytest

from difftool.errors import RecipeError
from difftool.planning.foreign import foreign_call, foreign_facts
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe

OVIS = "AIDC-AI/Ovis-Image-7B"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def plan(model, **sampling):
    return make_plan(load_recipe({"model": model, "sampling": {"prompt": "x", **sampling}}), run=RunOptions())


def problems(model, **sampling):
    with pytest.raises(RecipeError) as error:
        plan(model, **sampling)
    return [problem.message for problem in error.value.problems]


@pytest.mark.parametrize("name", ["OvisImagePipeline", "SanaPipeline", "WanImageToVideoPipeline", "MochiPipeline"])
def test_the_source_says_what_the_class_says(name):
    call = foreign_call(name)
    expected = inspect.signature(getattr(diffusers, name).__call__).parameters
    assert list(call.arguments) == list(expected)
    for key, parameter in expected.items():
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        assert call.arguments[key] == default or call.arguments[key] is None, key


def test_the_source_says_what_it_makes():
    assert foreign_call("StableDiffusionXLPipeline").makes == "image"
    assert foreign_call("WanPipeline").makes == "video"
    assert foreign_call("StableAudioPipeline").makes == "audio"


def test_an_inherited_call_is_found():
    assert foreign_call("StableDiffusionOnnxPipeline") == foreign_call("OnnxStableDiffusionPipeline") is not None


def test_planning_imports_nothing_of_it():
    code = (
        "import sys\nfrom difftool.planning.foreign import foreign_facts\n"
        "assert foreign_facts('OvisImagePipeline')\nassert not {'torch', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_class_that_no_family_runs_is_planned_with_its_own_defaults():
    made = plan(OVIS)
    assert (made.model.backend, made.model.pipeline_class, made.task) == ("diffusers", "OvisImagePipeline", "t2i")
    sampling = made.items[0].sampling
    assert (sampling["num_inference_steps"], sampling["guidance_scale"], sampling["height"]) == (50, 5.0, None)
    chosen = {choice.key: choice for choice in made.choices}
    assert chosen["model.backend"].reason == "no family runs OvisImagePipeline natively"


def test_what_its_call_does_not_take_is_refused():
    assert problems(OVIS, true_cfg_scale=2.0)[0].startswith(
        "sampling.true_cfg_scale: OvisImagePipeline ignores it; it takes guidance_scale, height"
    )
    assert problems(OVIS, extra={"sigma": [1.0]}) == ["sampling.extra.sigma: unknown argument, did you mean 'sigmas'?"]
    assert problems({"path": OVIS, "backend": "diffusers", "diffusers_kwargs": {"joint_kwargs": {}}})[0].startswith(
        "model.diffusers_kwargs.joint_kwargs: OvisImagePipeline takes no such argument; did you mean 'joint_attention_"
    )


def test_native_refuses_it_and_names_the_nearest():
    message = problems({"path": OVIS, "backend": "native"})[0]
    assert message.startswith(f"model.path: {OVIS} is a OvisImagePipeline, which no family runs natively; ")
    assert message.endswith("would; use backend: diffusers")


def test_code_of_a_checkpoint_runs_only_at_a_pinned_commit():
    pinned = {"path": OVIS, "trust_remote_code": True, "revision": COMMIT}
    assert plan(pinned).model.trust_remote_code
    only = "model.trust_remote_code: only for a hub id with model.revision pinned to a commit of 40 hex digits"
    assert problems({**pinned, "revision": "main"}) == [only]
    assert problems({**pinned, "revision": None}) == [only]
    assert problems({**pinned, "path": "builtin:shapes-image", "revision": None})[0].startswith(
        "model.trust_remote_code: FluxPipeline runs natively"
    )


def test_a_pipeline_that_makes_nothing_we_save_has_no_facts():
    assert foreign_facts("KandinskyPriorPipeline") is None
    assert foreign_facts("StableAudioPipeline") is None

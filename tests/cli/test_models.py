"""`difftool models` says what the code itself knows of every model."""

import json

from PIL import Image

from difftool.cli import models
from difftool.errors import RecipeError
from difftool.families.index import all_families
from difftool.planning import availability
from difftool.planning.checkpoint import builtin_models
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe

LIST = (
    "MODEL                         FAMILY     TASK  SIZE         STEPS  LACKS\n"
    "builtin:shapes-video          wan        t2v   32x32x9      20\n"
    "black-forest-labs/FLUX.1-dev  flux1      t2i   1024x1024    28\n"
    "Lightricks/LTX-Video          ltx        ti2v  704x512x161  50\n"
    "AIDC-AI/Ovis-Image-7B         diffusers  t2i   -            50     "
    "components, offload, cfg, ring, ulysses, tp, budget\n"
)
PAGE = (
    "black-forest-labs/FLUX.1-dev\n"
    "  family                              flux1 (FLUX.1)\n"
    "  task                                t2i\n"
    "  pipeline                            FluxPipeline\n"
    "  license                             FLUX.1-dev non-commercial, gated\n"
    "  sizes                               multiples of 16\n"
    "  extra                               prompt_2, negative_prompt_2\n"
    "defaults\n"
    "  sampling.negative_prompt            null\n"
    "  sampling.height                     1024\n"
    "  sampling.width                      1024\n"
    "  sampling.num_inference_steps        28\n"
    "  sampling.guidance_scale             3.5\n"
    "  sampling.true_cfg_scale             1.0\n"
    "  sampling.max_sequence_length        512\n"
    "takes effect in this version\n"
    "  model.lora                          checked by plan\n"
    "  model.components                    checked by plan\n"
    "  stages.text_encoding.precision      checked when it runs\n"
    "  stages.text_encoding.offload        checked by plan\n"
    "  stages.text_encoding.compile        checked when it runs\n"
    "  stages.text_encoding.quantization   checked when it runs\n"
    "  stages.denoising.precision          checked when it runs\n"
    "  stages.text_encoding.attention      checked when it runs\n"
    "  stages.denoising.attention          checked by plan\n"
    "  stages.denoising.quantization       checked when it runs\n"
    "  stages.denoising.compile            checked when it runs\n"
    "  stages.denoising.offload            checked by plan\n"
    "  stages.decoding.precision           checked when it runs\n"
    "  stages.decoding.tiling              checked when it runs\n"
    "  stages.decoding.slicing             checked when it runs\n"
    "  stages.decoding.parallel            checked when it runs\n"
    "  stages.decoding.compile             checked when it runs\n"
    "  stages.decoding.offload             checked by plan\n"
    "  parallel.dp                         checked by plan\n"
    "  parallel.cfg                        checked by plan\n"
    "  parallel.ring                       checked by plan\n"
    "  parallel.ulysses                    checked by plan\n"
    "  parallel.tp                         checked by plan\n"
    "  cache                               checked by plan\n"
    "  stages.text_encoding.tp             checked by plan\n"
    "  memory.budget                       checked by plan\n"
)


def test_the_list_is_a_line_for_each_model(difftool, monkeypatch):
    every = list(models.known_models())
    assert [model.name for model in every[: len(builtin_models())]] == [f"builtin:{name}" for name in builtin_models()]
    monkeypatch.setattr(models, "known_models", lambda: [model for model in every if model.name in LIST])
    answer = difftool("models")
    assert (answer.code, answer.err, answer.out) == (0, "", LIST)
    assert difftool("models", "list") == answer


def test_the_keys_that_a_plan_checks_are_keys_of_features():
    every = {key for model in models.known_models() for key in model.features}
    assert all(any(key == known or key.startswith(f"{known}.") for key in every) for known in models.PLANNED)


def test_a_model_is_shown_with_its_defaults_and_what_takes_effect(difftool):
    answer = difftool("models", "show", "black-forest-labs/flux.1-DEV")
    assert (answer.code, answer.err, answer.out) == (0, "", PAGE)
    short = difftool("models", "show", "shapes-image")
    assert short == difftool("models", "show", "builtin:shapes-image")
    assert short.out.startswith("builtin:shapes-image\n")


def test_a_pipeline_that_diffusers_runs_shows_no_components(tmp_path):
    """A recipe that replaces one of them is refused."""
    shown = {model.name: "model.components" in model.features for model in models.known_models()}
    (tmp_path / "config.json").write_text("{}")
    for name in ("AIDC-AI/Ovis-Image-7B", "black-forest-labs/FLUX.1-dev"):
        recipe = {"model": {"path": name, "components": {"vae": str(tmp_path)}}, "sampling": {"prompt": "x"}}
        try:
            make_plan(load_recipe(recipe), run=RunOptions())
        except RecipeError as error:
            assert not shown[name] and "with its own components" in str(error)
        else:
            assert shown[name]


def test_a_family_shows_all_its_models(difftool):
    (family,) = [family for family in all_families() if family.name == "flux1"]
    names = [known.hub_id for known in family.checkpoints]
    assert len(names) >= 2
    page = difftool("models", "show", "flux1").out
    assert [line for line in page.splitlines() if line.startswith("black-forest-labs/")] == names


def test_a_guidance_that_the_checkpoint_ignores_is_none_of_its_defaults(difftool):
    assert "sampling.guidance_scale  " in difftool("models", "show", "black-forest-labs/FLUX.1-dev").out
    assert "sampling.guidance_scale  " not in difftool("models", "show", "black-forest-labs/FLUX.1-schnell").out


def test_json_is_one_object_wherever_the_flag_stands(difftool):
    answer = difftool("models", "--json")
    found = json.loads(answer.out)["models"]
    assert {model["name"] for model in found} >= {c.hub_id for family in all_families() for c in family.checkpoints}
    assert difftool("models", "list", "--json") == answer == difftool("models", "--json", "list")
    assert json.loads(difftool("models", "show", "shapes-image", "--json").out)["models"] == [
        model for model in found if model["name"] == "builtin:shapes-image"
    ]
    assert difftool("models", "--json", "show", "shapes-image").out[:1] == "{"


def test_the_defaults_shown_are_those_a_plan_uses(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "input.png")
    picture = str(tmp_path / "input.png")

    def sampled(model, **sampling):
        plan = make_plan(load_recipe({"model": model, "sampling": {"prompt": "x", **sampling}}), run=RunOptions())
        return plan.items[0].sampling

    for model in models.known_models():
        pictures = {"image": [picture]} if model.images[0] else {}
        try:
            used = sampled(model.name, **pictures)
        except RecipeError as error:  # some go from a first frame to a last
            assert [problem.key for problem in error.problems] == ["sampling.last_image"]
            used = sampled(model.name, **pictures, last_image=picture)
        fitted = ("height", "width") if model.images[0] else ()  # by the picture
        shown = {key: value for key, value in model.sampling.items() if key not in fitted}
        assert {key: used[key] for key in shown} == shown, model.name


def test_features_follow_what_this_version_applies(monkeypatch):
    key = "stages.denoising.kernels"
    assert key not in models.features(("dp", "tp"), native=True)
    monkeypatch.setattr(availability, "AVAILABLE", {**availability.AVAILABLE, key: None})
    found = models.features(("dp", "tp"), native=True)
    assert (found[key], found["model.lora"], found["parallel.tp"]) == (None, None, None)
    assert "serve.port" not in found  # nothing of it takes effect


def test_an_unknown_name_gets_the_nearest(difftool):
    answer = difftool("models", "show", "FLUX.1-schnel")
    assert answer.code == 2
    assert answer.err == (
        "error: no model or family is called 'FLUX.1-schnel'\nhint: did you mean black-forest-labs/FLUX.1-schnell?\n"
    )

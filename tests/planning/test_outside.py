"""Families from outside: the folder of `model.code`, and installed packages that register one."""

import json
import sys
from pathlib import Path

import pytest

from difftool.errors import PlanError, RecipeError
from difftool.families import index
from difftool.families.outside import last_line
from difftool.pipeline.registry import load_config
from difftool.planning.loading import loading
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.render import render_plan
from difftool.recipe.load import load_recipe

FACTS = """
from difftool.facts import CheckpointFacts, FamilyFacts, PipelineFacts

FACTS = FamilyFacts(
    name="{family}",
    title="Stripes",
    pipelines={{"{pipeline}": PipelineFacts("image", "{package}.model:StripesConfig", ("transformer", "vae"))}},
    checkpoints=(CheckpointFacts("maker/stripes", "{pipeline}", {{}}),),
    sampling={{"height": 16, "width": 16, "num_inference_steps": 2}},
    guidance=(),
    second_branch=None,
    heads_key="num_heads",
    size_multiple=8,
    num_frames=None,
    max_sequence_length=8,
)
"""
MODEL = """
from {package}.facts import FACTS

class StripesConfig:
    facts = FACTS
"""


def write_family(folder, family="stripes", pipeline="StripesPipeline"):
    folder.mkdir(parents=True, exist_ok=True)
    names = {"family": family, "pipeline": pipeline, "package": folder.name}
    (folder / "facts.py").write_text(FACTS.format(**names))
    (folder / "model.py").write_text(MODEL.format(**names))
    return folder


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text(json.dumps({"_class_name": "StripesPipeline"}))
    return tmp_path / "model"


def register(monkeypatch, tmp_path, *packages, pipeline="StripesPipeline"):
    """Makes each package installed, as pip does: importable, with an entry point beside it."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    for package in packages:
        info = tmp_path / "site" / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[difftool.families]\n{pipeline} = {package}.facts\n")


def plan(path, **model):
    recipe = {"model": {"path": str(path), **model}, "sampling": {"prompt": "wide"}}
    return make_plan(load_recipe(recipe), run=RunOptions())


def refusal(*given, **model):
    with pytest.raises(RecipeError) as error:
        plan(*given, **model)
    return str(error.value)


def test_a_folder_named_in_the_recipe_runs_its_pipeline_natively(tmp_path, model):
    code = write_family(tmp_path / "stripes_family")
    made = plan(model, code=str(code))
    assert (made.model.family, made.model.backend, made.model.code) == ("stripes", "native", str(code))
    assert made.items[0].sampling["num_inference_steps"] == 2
    assert "Stripes" in render_plan(made)
    config = load_config("stripes", "StripesPipeline", code=made.model.code, digest=made.model.code_sha256)
    assert type(config).__module__ == "stripes_family.model"
    assert str(tmp_path) not in sys.path
    assert plan("maker/stripes", code=str(code)).model.hub_id == "maker/stripes"
    assert "no known model is named 'maker/stripes'" in refusal("maker/stripes")


def test_changed_code_is_another_workload_and_is_imported_again(tmp_path, model):
    code = write_family(tmp_path / "changing")
    before = plan(model, code=str(code))
    assert plan(model, code=str(code)).workload_sha256 == before.workload_sha256
    facts = (code / "facts.py").read_text()
    (code / "facts.py").write_text(facts.replace('"num_inference_steps": 2', '"num_inference_steps": 33'))
    with pytest.raises(PlanError, match="changing has changed since the run was planned"):
        load_config("stripes", "StripesPipeline", code=before.model.code, digest=before.model.code_sha256)
    after = plan(model, code=str(code))
    assert after.items[0].sampling["num_inference_steps"] == 33
    assert after.workload_sha256 != before.workload_sha256


def test_the_same_code_in_another_place_is_the_same_workload(tmp_path, model):
    hashes = {
        plan(model, code=str(write_family(tmp_path / place / "moved"))).workload_sha256 for place in ("here", "there")
    }
    assert len(hashes) == 1


def test_an_item_names_the_code_without_its_folders(tmp_path, model):
    made = plan(model, code=str(write_family(tmp_path / "short_name")))
    assert made.item_recipe(made.items[0])["model"]["code"] == "short_name"


def test_a_folder_that_is_no_family_is_refused_with_the_way_out(tmp_path, model):
    assert "nowhere is no folder; a family is a folder with facts.py" in refusal(model, code=str(tmp_path / "nowhere"))
    assert "model has no facts.py" in refusal(model, code=str(model))
    dashed = write_family(tmp_path / "my-family")
    assert "'my-family' is no name of a Python module; rename it" in refusal(model, code=str(dashed))
    clash = write_family(tmp_path / "json")
    assert "has the name of the Python module at" in refusal(model, code=str(clash))
    other = write_family(tmp_path / "other_pipeline", pipeline="DotsPipeline")
    assert "the family stripes runs DotsPipeline, and" in refusal(model, code=str(other))
    (own, *_) = index.all_families()
    taken = write_family(tmp_path / "taken_name", family=own.name)
    assert f"have the name {own.name!r}, which is one of difftool's own" in refusal(model, code=str(taken))
    good = write_family(tmp_path / "good_family")
    assert "leave out backend: diffusers" in refusal(model, code=str(good), backend="diffusers")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_like_it", "facts.py:1: ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("x = (", "facts.py:1: SyntaxError: '(' was never closed"),
        ("\n1 / 0", "facts.py:2: ZeroDivisionError: division by zero"),
        ("FACTS = {}", "has no FACTS of type difftool.facts.FamilyFacts"),
    ],
)
def test_facts_that_cannot_be_imported_say_where(tmp_path, model, text, said, request):
    code = write_family(tmp_path / f"broken_{abs(hash(text))}")
    (code / "facts.py").write_text(text)
    assert said in refusal(model, code=str(code))


def test_an_installed_family_runs_its_pipeline(tmp_path, model, monkeypatch):
    register(monkeypatch, tmp_path, "stripes_package")
    write_family(tmp_path / "site" / "stripes_package")
    made = plan(model)
    assert (made.model.family, made.model.backend, made.model.code) == ("stripes", "native", None)
    config = load_config("stripes", "StripesPipeline")
    assert type(config).__module__ == "stripes_package.model"


def test_changed_code_of_an_installed_family_is_another_workload(tmp_path, model, monkeypatch):
    """Anywhere in its package, also beside the family."""
    register(monkeypatch, tmp_path, "hashed_package")
    package = write_family(tmp_path / "site" / "hashed_package")
    before = plan(model)
    assert plan(model).workload_sha256 == before.workload_sha256
    assert plan("builtin:shapes-image").model.code_sha256 is None
    (package / "deeper").mkdir()
    for file in (package / "model.py", package / "deeper" / "blocks.py"):
        load_config("stripes", "StripesPipeline", digest=before.model.code_sha256)
        with file.open("a") as text:
            text.write("\nWIDTH = 8\n")
        with pytest.raises(PlanError, match="the installed family stripes has changed since the run was planned"):
            load_config("stripes", "StripesPipeline", digest=before.model.code_sha256)
        after = plan(model)
        assert after.workload_sha256 != before.workload_sha256 and loading(after) != loading(before)
        before = after


def test_a_family_of_one_module_has_its_code_in_the_hash_too(tmp_path, model, monkeypatch):
    register(monkeypatch, tmp_path, "single_module")
    module = tmp_path / "site" / "single_module.py"
    info = tmp_path / "site" / "single_module-1.0.dist-info"
    (info / "entry_points.txt").write_text("[difftool.families]\nStripesPipeline = single_module\n")
    module.write_text(FACTS.format(family="stripes", pipeline="StripesPipeline", package="single_module"))
    module.write_text(module.read_text().replace("single_module.model", "single_module"))
    before = plan(model).workload_sha256
    module.write_text(module.read_text() + "WIDTH = 8\n")
    assert plan(model).workload_sha256 != before


def test_a_broken_installed_family_is_an_error_only_where_it_is_chosen(tmp_path, model, monkeypatch):
    register(monkeypatch, tmp_path, "broken_package")
    write_family(tmp_path / "site" / "broken_package")
    (tmp_path / "site" / "broken_package" / "facts.py").write_text("raise RuntimeError('no licence')")
    assert plan("builtin:shapes-image").model.pipeline_class == "FluxPipeline"
    assert "broken_package" not in sys.modules
    said = refusal(model)
    assert "broken_package.facts of broken_package" in said and "facts.py:1: RuntimeError: no licence" in said


def test_two_families_for_one_pipeline_are_an_error_that_names_both(tmp_path, model, monkeypatch):
    register(monkeypatch, tmp_path, "first_package", "second_package")
    said = refusal(model)
    assert "first_package.facts of first_package and second_package.facts of second_package" in said


def test_an_installed_family_cannot_take_a_pipeline_of_difftools_own(tmp_path, monkeypatch):
    register(monkeypatch, tmp_path, "flux_package", pipeline="FluxPipeline")
    write_family(tmp_path / "site" / "flux_package", pipeline="FluxPipeline")
    said = refusal("builtin:shapes-image")
    assert "FluxPipeline is registered by the installed family stripes, and run by difftool's own flux1" in said


def test_the_place_of_an_error_without_files_is_unknown():
    assert last_line(ValueError("x")) == "?: ValueError: x"


def test_the_folder_is_relative_to_the_recipe(tmp_path, model):
    write_family(tmp_path / "beside_family")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {path: ./model, code: ./beside_family/}\nsampling: {prompt: wide}\n")
    assert Path(make_plan(load_recipe(recipe), run=RunOptions()).model.code).name == "beside_family"

"""A package that a model needs and this machine lacks is told before anything loads, with the line that installs it."""

from dataclasses import replace

import pytest

from difftool.errors import PlanError
from difftool.planning import make
from difftool.planning.checkpoint import find_checkpoint
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe

MODEL = "builtin:shapes-image"


def plan(monkeypatch, packages):
    """A plan of a model whose pipeline needs these packages."""
    found = find_checkpoint(MODEL, None, None)
    name = found.model.pipeline_class
    pipeline = replace(found.pipeline, packages=packages)
    checkpoint = replace(found, family=replace(found.family, pipelines={name: pipeline}))
    monkeypatch.setattr(make, "find_checkpoint", lambda *given: checkpoint)
    return make_plan(load_recipe({"model": MODEL, "sampling": {"prompt": "a red circle"}}), run=RunOptions())


def test_a_package_that_is_missing_is_named_with_what_needs_it_and_how_to_get_it(monkeypatch):
    with pytest.raises(PlanError) as error:
        plan(monkeypatch, {"json": "pip install json", "nosuchpackage": "pip install nosuchpackage"})
    assert error.value.exit_code == 3
    assert str(error.value) == f"{MODEL} (FluxPipeline) needs nosuchpackage, which is not installed here"
    assert error.value.hint == "pip install nosuchpackage"


def test_every_missing_package_is_named_at_once(monkeypatch):
    with pytest.raises(PlanError, match="needs nosuch1 and nosuch2, which are not installed here") as error:
        plan(monkeypatch, {"nosuch1": "pip install nosuch1", "nosuch2": "pip install nosuch2"})
    assert error.value.hint == "pip install nosuch1, then pip install nosuch2"


def test_what_is_there_is_no_obstacle(monkeypatch):
    assert plan(monkeypatch, {"json": "pip install json"}).items

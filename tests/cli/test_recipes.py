"""`difftool recipes`: what ships can be listed, read, and copied to start from."""

import json
from pathlib import Path

import pytest

from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe import lookup
from difftool.recipe.load import load_recipe
from difftool.recipe.lookup import builtin_recipes

LIST = (
    "flux1-dev      FLUX.1-dev at its reference settings: 1024 x 1024, 28 steps, embedded guidance 3.5.\n"
    "flux1-schnell  FLUX.1-schnell at its reference settings: 1024 x 1024 in 4 steps, no guidance.\n"
    "shapes-image   The built-in picture model on any machine, in seconds.\n"
)


def test_the_list_says_what_each_is_for(difftool, monkeypatch):
    three = {name: path for name, path in builtin_recipes().items() if name in LIST}
    monkeypatch.setattr(lookup, "builtin_recipes", lambda: three)
    answer = difftool("recipes", "list")
    assert (answer.code, answer.err, answer.out) == (0, "", LIST)
    found = json.loads(difftool("recipes", "list", "--json").out)["recipes"]
    assert found[-1] == {"name": "shapes-image", "about": "The built-in picture model on any machine, in seconds."}


def test_without_a_command_the_help_is_shown(difftool):
    answer = difftool("recipes")
    assert answer == difftool("recipes", "--help")
    assert answer.out == (
        "Usage: difftool recipes [OPTIONS] COMMAND [ARGS]...\n"
        "\n"
        "  List, show and copy the built-in recipes.\n"
        "\n"
        "Commands:\n"
        "  list  List the built-in recipes.\n"
        "  show  Print a built-in recipe as it is.\n"
        "  copy  Copy a built-in recipe to change it; overwrites nothing.\n"
        "\n"
        "Options:\n"
        "  --help  show this page\n"
    )


def test_a_recipe_is_shown_as_it_is(difftool):
    answer = difftool("recipes", "show", "shapes-image")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == (
        "# The built-in picture model on any machine, in seconds.\n"
        "schema: difftool/v1\n"
        "model: builtin:shapes-image\n"
        "sampling:\n"
        "  prompt: a red circle\n"
    )


@pytest.mark.parametrize("name", builtin_recipes())
def test_a_copy_makes_the_same_plan(difftool, name):
    answer = difftool("recipes", "copy", name, "mine.yaml")
    assert (answer.code, answer.out, answer.err) == (0, "mine.yaml\n", "")
    copied, shipped = (make_plan(load_recipe(source), run=RunOptions()) for source in ("mine.yaml", name))
    assert copied.recipe_sha256 == shipped.recipe_sha256


def test_the_target_may_be_left_out_or_a_folder(difftool):
    Path("mine").mkdir()
    assert difftool("recipes", "copy", "shapes-image").out == "shapes-image.yaml\n"
    assert difftool("recipes", "copy", "shapes-image", "mine").out == "mine/shapes-image.yaml\n"
    answer = difftool("recipes", "copy", "shapes-image", "none/")
    assert answer.code == 9
    assert answer.err.startswith("error: cannot write none/shapes-image.yaml: No such file or directory\n")


def test_what_is_there_is_left_alone(difftool):
    Path("shapes-image.yaml").write_text("mine")
    answer = difftool("recipes", "copy", "shapes-image")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == (
        "error: shapes-image.yaml exists already\nhint: name another: difftool recipes copy shapes-image TARGET\n"
    )
    assert [(path.name, path.read_text()) for path in Path().iterdir()] == [("shapes-image.yaml", "mine")]


def test_an_unknown_name_gets_the_nearest(difftool):
    answer = difftool("recipes", "show", "flux1-schnel")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: no built-in recipe is called 'flux1-schnel'\nhint: did you mean flux1-schnell")

"""A request of one family as a plan sees it."""

from typing import Any

from difftool.errors import RecipeError
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe


def sampled(model: str, **sampling: Any) -> dict[str, Any]:
    """The values that a recipe of this sampling section runs with."""
    recipe = load_recipe({"model": model, "sampling": {"prompt": "x", **sampling}})
    return dict(make_plan(recipe, run=RunOptions()).items[0].sampling)


def refusals(model: str, **sampling: Any) -> list[str]:
    """What the plan says against it; nothing where it can be run."""
    try:
        sampled(model, **sampling)
    except RecipeError as error:
        return [problem.message for problem in error.problems]
    return []

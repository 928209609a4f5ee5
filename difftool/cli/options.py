"""The flags of every command that takes a recipe, made from the one flag table."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from difftool.cli.panels import PanelCommand, show_all
from difftool.recipe.flags import FLAGS, Flag


@dataclass(frozen=True)
class RecipeArguments:
    """What the command line says of the recipe. `flags` holds those that were given, by their first name."""

    recipe: str | None
    config: str | None
    output: str | None
    sets: tuple[str, ...]
    flags: Mapping[str, Any]


RECIPE_PARAMETERS: dict[str, Any] = {
    "recipe": Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="a recipe file, a built-in recipe, or a model", show_default=False)
    ],
    "config": Annotated[
        str | None, typer.Option("--config", "-c", metavar="RECIPE", help="the same as RECIPE", rich_help_panel="Options")
    ],
    "output": Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="PATH", help="FILE.png: the one file; FOLDER/: where media go"),
    ],
    "sets": Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="set any recipe key; repeatable")
    ],
    "help_all": Annotated[bool, typer.Option("--help-all", callback=show_all, is_eager=True, help="Show every flag.")],
}


def recipe_command(app: typer.Typer, name: str, function: Callable[..., None]) -> None:
    """Adds `function(arguments: RecipeArguments, own options…)` to `app` as a command with the recipe's flags."""
    own = list(inspect.signature(function).parameters.values())[1:]
    flags = {_parameter_name(flag): flag for flag in FLAGS}

    def command(**given: Any) -> None:
        arguments = RecipeArguments(
            recipe=given["recipe"],
            config=given["config"],
            output=given["output"],
            sets=tuple(given["sets"] or ()),
            flags={flag.names[0]: given[key] for key, flag in flags.items() if given[key] is not None},
        )
        function(arguments, **{parameter.name: given[parameter.name] for parameter in own})

    parameters = [_keyword(key, annotation) for key, annotation in RECIPE_PARAMETERS.items()]
    parameters += [_keyword(key, _option(flag)) for key, flag in flags.items()] + own

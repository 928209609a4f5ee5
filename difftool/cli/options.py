"""The flags of every command that takes a recipe, made from the one flag table."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from difftool.cli.completion import complete_key, complete_recipe
from difftool.cli.panels import COMMON, HELP_ALL, PanelCommand, show_all
from difftool.recipe.flag_table import FLAGS, Flag

if TYPE_CHECKING:
    from difftool.planning.plan import ProfilePlan


@dataclass(frozen=True)
class RecipeArguments:
    """What the command line says of the recipe. `flags` holds those of the table that were given, by first name.

    `profile` is what a command has its run record.
    """

    recipe: str | None
    config: str | None
    sets: tuple[str, ...]
    flags: Mapping[str, Any]
    output: str | None = None
    save_output: bool = True
    return_frames: bool = False
    keep_going: bool = False
    profile: "ProfilePlan | None" = None


RecipeArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help="a recipe file, a built-in recipe, a model or a generated file",
        autocompletion=complete_recipe,
    ),
]
ConfigOption = Annotated[
    str | None,
    typer.Option("--config", "-c", metavar="RECIPE", help="the same as RECIPE", autocompletion=complete_recipe),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="any key of the recipe; repeatable", autocompletion=complete_key
    ),
]
RECIPE_PARAMETERS: dict[str, Any] = {
    "recipe": RecipeArgument,
    "output": Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="x.png names the one file, x/ the folder", rich_help_panel=COMMON
        ),
    ],
    "config": ConfigOption,
    "sets": SetOption,
    "help_all": Annotated[bool, typer.Option(HELP_ALL, callback=show_all, is_eager=True, help="show every flag")],
}
# no recipe keys: they say what a run leaves, not what it makes
RUN_PARAMETERS: dict[str, Any] = {
    "save_output": Annotated[
        bool | None, typer.Option("--save-output/--no-save-output", help="write the media", rich_help_panel="run")
    ],
    "return_frames": Annotated[
        bool, typer.Option("--return-frames", help="write the raw pixels as .npz too", rich_help_panel="run")
    ],
    "keep_going": Annotated[
        bool | None,
        typer.Option(
            "--keep-going/--fail-fast", help="make the other items after one has failed", rich_help_panel="run"
        ),
    ],
}


def recipe_command(
    app: typer.Typer,
    name: str,
    function: Callable[..., None],
    *,
    kind: type[PanelCommand] = PanelCommand,
    without: Collection[str] = (),
) -> None:
    """Adds `function(arguments: RecipeArguments, *, own options…)` to `app` as a command with the recipe's flags.

    `without` names parameters of a run that would do nothing there, or that are the command's own.
    """
    own = list(inspect.signature(function).parameters.values())[1:]
    flags = {_parameter_name(flag): flag for flag in FLAGS}

    def command(**given: Any) -> None:
        arguments = RecipeArguments(
            recipe=given["recipe"],
            config=given["config"],
            output=None if "output" in without else given["output"],
            save_output=given.get("save_output") is not False,
            return_frames="return_frames" not in without and given["return_frames"],
            keep_going="keep_going" not in without and bool(given["keep_going"]),
            sets=tuple(given["sets"] or ()),
            flags={flag.names[0]: given[key] for key, flag in flags.items() if given[key] is not None},
        )
        function(arguments, **{parameter.name: given[parameter.name] for parameter in own})

    table = {key: _option(flag) for key, flag in flags.items()}
    shared = {**RECIPE_PARAMETERS, **RUN_PARAMETERS}
    annotations = {**table, **{key: value for key, value in shared.items() if key not in without}}
    parameters = [*(_keyword(key, annotation) for key, annotation in annotations.items()), *own]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(name, cls=kind, help=function.__doc__)(command)


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    default = False if get_args(annotation)[0] is bool else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameter_name(flag: Flag) -> str:
    """`--num-gpus` -> `flag_num_gpus`, which no option of a command is called."""
    return "flag_" + flag.names[0].lstrip("-").replace("-", "_")


def _option(flag: Flag) -> Any:
    """Values stay text here: their type is the recipe key's, and every error of theirs is told at once."""
    kind = bool if flag.kind == "switch" else list[str] if flag.repeatable else str
    help_text = flag.help + ("; repeatable" if flag.repeatable else "")
    return Annotated[
        kind | None, typer.Option(*flag.names, metavar=flag.key, help=help_text, rich_help_panel=flag.panel)
    ]

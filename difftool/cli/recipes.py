"""`difftool recipes`: the recipes that ship with difftool, to read and to start one's own from."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from difftool.cli.completion import complete_builtin_recipe
from difftool.cli.panels import PanelCommand, PanelGroup
from difftool.cli.usage import UsageError

JsonFlag = Annotated[bool, typer.Option("--json", help="print one JSON object")]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="a recipe of the list", autocompletion=complete_builtin_recipe)
]
TargetArgument = Annotated[
    str | None, typer.Argument(metavar="TARGET", help="the new file, or its folder; the current one if left out")
]


def register(app: typer.Typer) -> None:
    recipes = typer.Typer(cls=PanelGroup, help="List, show and copy the built-in recipes.")
    recipes.callback(invoke_without_command=True)(show_help)
    recipes.command("list", cls=PanelCommand)(list_recipes)
    recipes.command("show", cls=PanelCommand)(show)
    recipes.command("copy", cls=PanelCommand)(copy)
    app.add_typer(recipes, name="recipes")


def show_help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def list_recipes(*, as_json: JsonFlag = False) -> None:
    """List the built-in recipes."""
    from difftool.recipe.lookup import builtin_recipes

    about = {name: first_comment(path.read_text("utf-8")) for name, path in builtin_recipes().items()}
    if as_json:
        found = [{"name": name, "about": text} for name, text in about.items()]
        typer.echo(json.dumps({"recipes": found}, indent=2, ensure_ascii=False))
    else:
        width = max(len(name) for name in about)
        typer.echo("\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in about.items()))


def show(name: NameArgument) -> None:
    """Print a built-in recipe as it is."""
    sys.stdout.write(find(name).read_text("utf-8"))


def copy(name: NameArgument, target: TargetArgument = None) -> None:
    """Copy a built-in recipe to change it; overwrites nothing."""
    from difftool.files import output_error, place_new, write_temporary

    source = find(name)
    is_folder = target is None or target.endswith(os.sep) or os.path.isdir(target)
    path = Path(target or "", source.name) if is_folder else Path(target or "")
    temporary = write_temporary(path, source.read_bytes())
    try:
        placed = place_new(temporary, path)
    except OSError as error:
        raise output_error(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)
    if not placed:
        raise UsageError(f"{path} exists already", hint=f"name another: difftool recipes copy {name} TARGET")
    typer.echo(path)


def find(name: str) -> Path:
    """The file of a built-in recipe. Raises UsageError with the nearest names."""
    from difflib import get_close_matches

    from difftool.recipe.lookup import builtin_recipes

    recipes = builtin_recipes()
    if name in recipes:
        return recipes[name]
    close = get_close_matches(name, recipes, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there is {', '.join(recipes)}"
    raise UsageError(f"no built-in recipe is called {name!r}", hint=hint)


def first_comment(text: str) -> str:
    """The line at the top that says what a recipe is for."""
    line = text.partition("\n")[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""

"""`difftool plan`: says what a recipe would run, and runs nothing."""

from typing import Annotated

import typer

from difftool.cli.options import RecipeArguments, recipe_command
from difftool.cli.usage import UsageError

ResolvedFlag = Annotated[bool, typer.Option("--resolved", help="print the complete recipe, every value filled in")]
JsonFlag = Annotated[bool, typer.Option("--json", help="print the plan as one JSON object")]


def register(app: typer.Typer) -> None:
    recipe_command(app, "plan", plan)


def plan(arguments: RecipeArguments, *, resolved: ResolvedFlag = False, as_json: JsonFlag = False) -> None:
    """Check and resolve a recipe and print what would run; what is refused ends with the exit code of a run."""
    from difftool.cli.prepare import plan_for, print_plan, print_resolved

    if resolved and as_json:
        raise UsageError("--resolved and --json exclude each other", hint="the JSON holds the resolved recipe already")
    made = plan_for(arguments, preview=True)
    if resolved:
        print_resolved(made)
    else:
        print_plan(made, as_json=as_json)

"""`difftool plan`: says what a recipe would run, and runs nothing."""

from typing import Annotated

import typer

from difftool.cli.options import RecipeArguments, recipe_command
from difftool.cli.usage import UsageError

ResolvedFlag = Annotated[bool, typer.Option("--resolved", help="print the complete recipe, every value filled in")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="print nothing but errors; the exit code tells")]
JsonFlag = Annotated[bool, typer.Option("--json", help="print the plan as one JSON object")]


def register(app: typer.Typer) -> None:
    recipe_command(app, "plan", plan)


def plan(
    arguments: RecipeArguments, *, resolved: ResolvedFlag = False, quiet: QuietFlag = False, as_json: JsonFlag = False
) -> None:
    """Check and resolve a recipe and print what would run; what is refused ends with the exit code of a run."""
    from difftool.cli.prepare import plan_for, print_plan, print_refusals, print_resolved

    if resolved and as_json:
        raise UsageError("--resolved and --json exclude each other", hint="the JSON holds the resolved recipe already")
    if quiet and (resolved or as_json):
        other = "--resolved" if resolved else "--json"
        raise UsageError(f"--quiet and {other} exclude each other", hint="--quiet prints nothing but errors")
    made = plan_for(arguments, preview=True)
    if quiet:
        print_refusals(made)
    elif resolved:
        print_resolved(made)
    else:
        print_plan(made, as_json=as_json)

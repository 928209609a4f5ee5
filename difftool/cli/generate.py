"""`difftool generate`: runs a recipe."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difftool.cli.options import RecipeArguments, recipe_command
from difftool.cli.panels import COMMON
from difftool.cli.usage import UsageError
from difftool.errors import DifftoolError, OutputError

if TYPE_CHECKING:
    from difftool.cli.progress import Mode
    from difftool.planning.plan import Plan

PerfDumpPath = Annotated[
    Path | None,
    typer.Option("--perf-dump-path", metavar="FILE", help="copy the perf dump there", rich_help_panel=COMMON),
]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="print only the paths of the media")]
VerboseFlag = Annotated[bool, typer.Option("--verbose", "-v", help="show the worker's log on stderr")]
JsonFlag = Annotated[bool, typer.Option("--json", help="print every event as one JSON object a line")]
DryRunFlag = Annotated[bool, typer.Option("--dry-run", help="print the plan and launch nothing, as `difftool plan`")]


def register(app: typer.Typer) -> None:
    recipe_command(app, "generate", generate)


def generate(
    arguments: RecipeArguments,
    *,
    perf_dump_path: PerfDumpPath = None,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    as_json: JsonFlag = False,
    dry_run: DryRunFlag = False,
) -> None:
    """Run a recipe: prompts in, media and a perf dump out."""
    from difftool.cli.prepare import check_target, plan_for, print_plan
    from difftool.cli.progress import choose_mode

    if quiet and as_json:
        raise UsageError("--quiet and --json exclude each other", hint="--json prints only events already")
    if perf_dump_path:
        check_target(perf_dump_path)
    plan = plan_for(arguments)
    if dry_run:
        print_plan(plan, as_json=as_json)
    else:
        mode = choose_mode(as_json=as_json, quiet=quiet, verbose=verbose)
        launch_plan(plan, mode=mode, verbose=verbose, perf_dump_path=perf_dump_path)


def launch_plan(plan: "Plan", *, mode: "Mode", verbose: bool, perf_dump_path: Path | None) -> None:
    """Runs the plan, shows its progress, and leaves the perf dump where it was asked for, also of a run that failed."""
    from difftool import launch
    from difftool.cli.prepare import copy_perf
    from difftool.cli.progress import make_listener, shown
    from difftool.cli.summary import StageTable
    from difftool.launch.events import Event

    records = launch.open_records(plan)
    table = StageTable()

    def hear(event: Event) -> None:
        table.take(event)
        listener.take(event)

    try:
        with make_listener(mode) as listener:
            result = launch.run(plan, records, on_event=hear, verbose=verbose)
    except DifftoolError:
        with contextlib.suppress(OutputError, ValueError):  # the failure of the run is what to tell
            copy_perf(records, perf_dump_path)
        raise
    copy_perf(records, perf_dump_path)
    if mode in ("plain", "live"):
        lines = [table.text(), f"perf dump: {shown(perf_dump_path or result.perf)}" if result.perf else ""]
        print(*filter(None, lines), sep="\n", file=sys.stderr)

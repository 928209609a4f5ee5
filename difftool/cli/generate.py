"""`difftool generate`: runs a recipe."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.options import RecipeArguments, recipe_command
from difftool.cli.panels import COMMON, PanelCommand
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
LAST = "last"
ResumeFlag = Annotated[
    str | None,
    typer.Option("--resume", metavar="[RUN]", help="make what the last run, or that one, left", rich_help_panel="run"),
]


class GenerateCommand(PanelCommand):
    """`--resume` may stand alone: then it means the last run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--resume" in args:
            args = _with_run(args, args.index("--resume"))
        rest: list[str] = super().parse_args(ctx, args)
        return rest


def _with_run(args: list[str], place: int) -> list[str]:
    from difftool.launch.records import RUN_ID

    if place + 1 < len(args) and RUN_ID.fullmatch(args[place + 1]):
        return args
    return [*args[:place], f"--resume={LAST}", *args[place + 1 :]]


def register(app: typer.Typer) -> None:
    recipe_command(app, "generate", generate, kind=GenerateCommand)


def generate(
    arguments: RecipeArguments,
    *,
    resume: ResumeFlag = None,
    perf_dump_path: PerfDumpPath = None,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    as_json: JsonFlag = False,
    dry_run: DryRunFlag = False,
) -> None:
    """Run a recipe: prompts in, media and a perf dump out."""
    from difftool.cli.prepare import check_target, plan_for, plan_to_resume, print_plan
    from difftool.cli.progress import choose_mode

    if quiet and as_json:
        raise UsageError("--quiet and --json exclude each other", hint="--json prints only events already")
    if perf_dump_path:
        check_target(perf_dump_path)
    records = None
    if resume is None:
        plan = plan_for(arguments)
    else:
        plan, records = plan_to_resume(arguments, None if resume == LAST else resume)
    if dry_run:
        print_plan(plan, as_json=as_json)
    else:
        mode = choose_mode(as_json=as_json, quiet=quiet, verbose=verbose)
        launch_plan(plan, records, mode=mode, verbose=verbose, perf_dump_path=perf_dump_path)


def launch_plan(
    plan: "Plan", records: Path | None, *, mode: "Mode", verbose: bool, perf_dump_path: Path | None
) -> None:
    """Runs the plan, or what `records` of a run left of it, shows its progress, and leaves the perf dump where it was
    asked for, also of a run that failed.
    """
    from difftool import launch
    from difftool.cli.prepare import copy_perf
    from difftool.cli.progress import make_listener, shown
    from difftool.cli.summary import StageTable
    from difftool.launch.events import Event

    if records is None:
        records = launch.open_records(plan)
    else:
        todo = launch.take_up(plan, records)
        if mode in ("plain", "live"):
            left = len(todo.positions())
            print(f"resumes {records.name}: {len(plan.items) - left} items are there, {left} to make", file=sys.stderr)
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

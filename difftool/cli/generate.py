"""`difftool generate`: runs a recipe."""

import contextlib
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.options import RecipeArguments, recipe_command
from difftool.cli.panels import COMMON, PanelCommand
from difftool.cli.profiled import AllStagesFlag, TimestepsFlag, what_to_record
from difftool.cli.usage import UsageError
from difftool.errors import DifftoolError, OutputError, PlanError

if TYPE_CHECKING:
    from difftool.cli.progress import Mode
    from difftool.launch.meeting import Meeting
    from difftool.launch.node_meeting import NodeMeeting
    from difftool.planning.plan import Plan

PerfDumpPath = Annotated[
    Path | None,
    typer.Option("--perf-dump-path", metavar="FILE", help="copy the perf dump there", rich_help_panel=COMMON),
]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="print only the paths of the media")]
VerboseFlag = Annotated[bool, typer.Option("--verbose", "-v", help="show the worker's log on stderr")]
JsonFlag = Annotated[bool, typer.Option("--json", help="print every event as one JSON object a line")]
DryRunFlag = Annotated[bool, typer.Option("--dry-run", help="print the plan and launch nothing, as `difftool plan`")]
ProfileFlag = Annotated[
    bool, typer.Option("--profile", help="record a trace, as `difftool profile`", rich_help_panel="run")
]
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
    context: typer.Context,
    resume: ResumeFlag = None,
    profile: ProfileFlag = False,
    num_profiled_timesteps: TimestepsFlag = None,
    profile_all_stages: AllStagesFlag = False,
    perf_dump_path: PerfDumpPath = None,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    as_json: JsonFlag = False,
    dry_run: DryRunFlag = False,
) -> None:
    """Run a recipe: prompts in, media and a perf dump out."""
    recorded = what_to_record(profile=profile, steps=num_profiled_timesteps, all_stages=profile_all_stages)
    run_recipe(
        replace(arguments, profile=recorded),
        context=context,
        resume=resume,
        perf_dump_path=perf_dump_path,
        quiet=quiet,
        verbose=verbose,
        as_json=as_json,
        dry_run=dry_run,
    )


def run_recipe(
    arguments: RecipeArguments,
    *,
    context: typer.Context,
    resume: str | None = None,
    perf_dump_path: Path | None,
    quiet: bool,
    verbose: bool,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Plans and runs what the command line asks for, or shows the plan. Raises what a run can end with."""
    from difftool.cli.nodes import lead, lend
    from difftool.cli.prepare import check_target, node_of, plan_for, plan_to_resume, print_plan
    from difftool.cli.progress import choose_mode
    from difftool.cli.quality import prepare_references
    from difftool.launch.nsys import check_nsys
    from difftool.launch.outside import read_outside

    if quiet and as_json:
        raise UsageError("--quiet and --json exclude each other", hint="--json prints only events already")
    if perf_dump_path:
        check_target(perf_dump_path)
    meeting: Meeting | None = context.obj
    world, records = meeting.outside if meeting else read_outside(os.environ), None
    node = None if dry_run else node_of(arguments, world)
    if not dry_run:
        check_nsys(arguments.profile, alone=world is None and node is None)
    if node is not None and node.rank > 0:
        raise typer.Exit(lend(arguments, node, world))
    if resume is None:
        plan = plan_for(arguments, world, preview=dry_run)
    else:
        plan, records = plan_to_resume(arguments, None if resume == LAST else resume, world)
    if dry_run:
        print_plan(plan, as_json=as_json)
    else:
        mode = choose_mode(as_json=as_json, quiet=quiet, verbose=verbose)
        prepare_references(plan, alone=world is None and plan.nodes is None, mode=mode, verbose=verbose)
        if meeting:
            if plan.on_oom == "fallback":
                message = "launch.on_oom=fallback starts the ranks anew, and these were started by another launcher"
                raise PlanError(message, hint="use launch.on_oom=fail")
            meeting.gather()
        with lead(plan.nodes, mode) if plan.nodes else contextlib.nullcontext(meeting) as others:
            launch_plan(plan, records, others, mode=mode, verbose=verbose, perf_dump_path=perf_dump_path)


def launch_plan(
    plan: "Plan",
    records: Path | None,
    meeting: "Meeting | NodeMeeting | None",
    *,
    mode: "Mode",
    verbose: bool,
    perf_dump_path: Path | None,
) -> None:
    """Runs the plan, or what `records` of a run left of it, shows its progress, and leaves the perf dump where it was
    asked for, also of a run that failed. The ranks are those that came to the meeting, if there is one, or those of the
    machines that did. Raises QualityFailed where everything is made and is not what was asked for.
    """
    from difftool import launch
    from difftool.cli.prepare import copy_perf
    from difftool.cli.profiled import profile_lines
    from difftool.cli.progress import make_listener, shown
    from difftool.cli.quality import check_quality, quality_lines
    from difftool.cli.summary import StageTable
    from difftool.launch.events import Event
    from difftool.launch.node_meeting import NodeMeeting
    from difftool.report.perf import read_perf
    from difftool.report.reuse import cache_line

    if records is None:
        records = launch.open_records(plan)
    else:
        todo = launch.take_up(plan, records)
        if mode in ("plain", "live"):
            left = len(todo.positions())
            print(f"resumes {records.name}: {len(plan.items) - left} items are there, {left} to make", file=sys.stderr)
    if isinstance(meeting, NodeMeeting):
        meeting.prepare(plan, records)
    table = StageTable()

    def hear(event: Event) -> None:
        table.take(event)
        listener.take(event)

    try:
        with make_listener(mode) as listener:
            run = partial(launch.run, on_event=hear, verbose=verbose, meeting=meeting)
            result = launch.run_to_the_end(plan, records, run, told=partial(_warn, mode=mode))
    except DifftoolError:
        with contextlib.suppress(OutputError, ValueError):  # the failure of the run is what to tell
            copy_perf(records, perf_dump_path)
        raise
    copy_perf(records, perf_dump_path)
    dump, perf = read_perf(result.perf) if result.perf else None, perf_dump_path or result.perf
    quality = dump.quality if dump else None
    if mode in ("plain", "live"):
        profiled = profile_lines(dump.profile if dump else None, records)
        reused = cache_line(dump.effective) if dump else ""
        lines = [table.text(), reused, *profiled, *quality_lines(quality), f"perf dump: {shown(perf)}" if perf else ""]
        print(*filter(None, lines), sep="\n", file=sys.stderr)
    check_quality(quality, perf)


def _warn(message: str, *, mode: "Mode") -> None:
    """What a user should see of a run that goes on in another way than planned, beside its progress."""
    if mode in ("plain", "live"):
        print(f"warning: {message}", file=sys.stderr)

"""`difftool profile`: the run of `difftool generate` under torch's profiler, or under Nsight Systems."""

from dataclasses import replace

import typer

from difftool.cli.generate import DryRunFlag, JsonFlag, PerfDumpPath, QuietFlag, VerboseFlag, run_recipe
from difftool.cli.options import RecipeArguments, recipe_command
from difftool.cli.profiled import (
    AllStagesFlag,
    DelayFlag,
    DurationFlag,
    SnapshotFlag,
    TimestepsFlag,
    ToolFlag,
    Window,
    what_nsys_records,
    what_torch_records,
)


def register(app: typer.Typer) -> None:
    recipe_command(app, "profile", profile)


def profile(
    arguments: RecipeArguments,
    *,
    context: typer.Context,
    tool: ToolFlag = "torch",
    num_profiled_timesteps: TimestepsFlag = None,
    profile_all_stages: AllStagesFlag = False,
    delay: DelayFlag = None,
    duration: DurationFlag = None,
    memory_snapshot: SnapshotFlag = False,
    perf_dump_path: PerfDumpPath = None,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    as_json: JsonFlag = False,
    dry_run: DryRunFlag = False,
) -> None:
    """Run a recipe under a profiler: a trace of every rank, the longest operations, and where the time went."""
    what = what_nsys_records if tool == "nsys" else what_torch_records
    recorded = what(Window(delay, duration), steps=num_profiled_timesteps, all_stages=profile_all_stages)
    run_recipe(
        replace(arguments, profile=recorded.model_copy(update={"memory_snapshot": memory_snapshot})),
        context=context,
        perf_dump_path=perf_dump_path,
        quiet=quiet,
        verbose=verbose,
        as_json=as_json,
        dry_run=dry_run,
    )

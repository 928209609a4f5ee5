"""From the command line to a plan, and what is printed of one."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from difftool.cli.options import RecipeArguments
from difftool.cli.sglang import cache_variables_warning
from difftool.cli.usage import UsageError
from difftool.errors import OutputError, Problem, RecipeError
from difftool.launch.outside import check_fit, check_world
from difftool.launch.records import PERF_FILE
from difftool.launch.resume import check_same_work, find_run, recorded_plan
from difftool.planning.make import make_plan
from difftool.planning.nodes import plan_nodes
from difftool.planning.outputs import RunOptions, output_folder
from difftool.planning.plan import Nodes, Plan
from difftool.recipe.flags import Override, flag_overrides, parse_set
from difftool.recipe.load import load_recipe
from difftool.report.perf import read_perf, write_perf

if TYPE_CHECKING:
    from difftool.launch.outside import Outside
    from difftool.recipe.load import Loaded

MEDIA_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".npz", ".mp4", ".gif", ".wav")
NUM_GPUS, NNODES, NODE_RANK = "parallel.num_gpus", "launch.nnodes", "launch.node_rank"


def plan_for(arguments: RecipeArguments, world: "Outside | None" = None, *, preview: bool = False) -> Plan:
    """The plan of what the command line asks for, with the ranks of a `world` that is there; a `preview` is for show.

    Raises RecipeError with every problem of the recipe, PlanError where it takes another number of ranks.
    """
    return _plan(_load(arguments, world), replace(run_options(arguments), preview=preview), world)


def node_of(arguments: RecipeArguments, world: "Outside | None") -> Nodes | None:
    """Which of several machines this one is, before anything is planned; None for one alone."""
    return plan_nodes(_read(arguments, world).recipe.launch.model_dump())


def plan_as_node(arguments: RecipeArguments, world: "Outside | None", recorded: Plan | None = None) -> Plan:
    """The plan of another node than the first, whose drawn seeds are those of `recorded`, the first one's plan."""
    return _plan(_read(arguments, world), replace(run_options(arguments), recorded=recorded), world)


def plan_to_resume(arguments: RecipeArguments, run_id: str | None, world: "Outside | None" = None) -> tuple[Plan, Path]:
    """The same, for a run that did not end, and its records. Raises RecipeError where that run made something else."""
    loaded, options = _load(arguments, world), run_options(arguments)
    records = find_run(Path(output_folder(loaded.recipe.output.dir, options)), run_id)
    recorded = recorded_plan(records)
    plan = _plan(loaded, replace(options, recorded=recorded), world)
    if plan.quality.tier != "none":
        message = f"--resume: quality.tier={plan.quality.tier} asks of every output, also of those made before"
        raise RecipeError(message, hint="resume with --set quality.tier=none, or start anew without --resume")
    check_same_work(plan, recorded, f"run {records.name}")
    return plan, records


def _plan(loaded: "Loaded", options: RunOptions, world: "Outside | None") -> Plan:
    try:
        plan = make_plan(loaded, run=options)
    except RecipeError as error:
        if world is not None and loaded.provenance.get(NUM_GPUS) == world.launcher:
            check_fit(error.problems, world)
        raise
    if world is not None:
        check_world(plan, world)
    return plan


def _load(arguments: RecipeArguments, world: "Outside | None") -> "Loaded":
    warning = cache_variables_warning(os.environ)
    if warning:
        print(warning, file=sys.stderr)
    return _read(arguments, world)


def _read(arguments: RecipeArguments, world: "Outside | None") -> "Loaded":
    """The recipe; what it leaves open of the ranks, or of the machines, is as the world has it."""
    source, overrides = chosen_recipe(arguments), read_overrides(arguments)
    loaded = load_recipe(source, overrides)
    if world is None:
        return loaded
    if world.machines:
        there = {NNODES: world.size, NODE_RANK: world.rank}
        left = {key: value for key, value in there.items() if key not in loaded.provenance}
    else:
        left = {NUM_GPUS: world.size} if loaded.recipe.parallel.num_gpus == "auto" else {}
    return load_recipe(source, [*overrides, *(Override(key, value, world.launcher) for key, value in left.items())])


def chosen_recipe(arguments: RecipeArguments) -> str:
    """RECIPE or --config, which are the same thing."""
    if arguments.recipe is not None and arguments.config is not None:
        raise UsageError(
            f"RECIPE ({arguments.recipe}) and --config ({arguments.config}) are the same thing; give one",
            hint="a prompt goes in -p",
        )
    chosen = arguments.recipe if arguments.recipe is not None else arguments.config
    if chosen is None:
        raise UsageError("RECIPE is missing: a file, a built-in recipe, or a model", hint="builtin:shapes-image is one")
    return chosen


def read_overrides(arguments: RecipeArguments) -> list[Override]:
    """Flags, then `--set` in its order: the later one wins. Raises RecipeError with every one that is wrong."""
    overrides, problems = [], list[Problem]()
    try:
        overrides += flag_overrides(arguments.flags)
    except RecipeError as error:
        problems += error.problems
    for text in arguments.sets:
        try:
            overrides.append(parse_set(text))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    return overrides


def run_options(arguments: RecipeArguments) -> RunOptions:
    """`-o`: a name with a medium's suffix is the one file, anything else a folder."""
    output = arguments.output
    is_file = output is not None and _names_a_file(output)
    return RunOptions(
        output_file=Path(output) if output is not None and is_file else None,
        output_dir=None if is_file else output,
        save_output=arguments.save_output,
        return_frames=arguments.return_frames,
        keep_going=arguments.keep_going,
        profile=arguments.profile,
    )


def _names_a_file(output: str) -> bool:
    path = Path(output)
    return path.suffix.lower() in MEDIA_SUFFIXES and not output.endswith(os.sep) and not path.is_dir()


def print_plan(plan: Plan, *, as_json: bool) -> None:
    """Leaves, after what cannot run, with the exit code of a run of it."""
    from difftool.planning.render import render_plan

    print(plan.model_dump_json(by_alias=True) + "\n" if as_json else render_plan(plan), end="")
    _leave_if_refused(plan)


def print_resolved(plan: Plan) -> None:
    from difftool.planning.render import render_resolved

    print(render_resolved(plan), end="")
    _leave_if_refused(plan)


def print_refusals(plan: Plan) -> None:
    """Only why it cannot run, on stderr."""
    print(*(f"{line}\n" for line in plan.refused), sep="", end="", file=sys.stderr)
    _leave_if_refused(plan)


def _leave_if_refused(plan: Plan) -> None:
    if plan.exit_code:
        raise typer.Exit(plan.exit_code)


def check_target(path: Path, option: str = "--perf-dump-path", name: str = "perf.json") -> None:
    """That a file can be written there, asked before anything is launched. Raises OutputError."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"{option} {path}: there is no folder {folder}", hint=f"mkdir -p {folder}")
    if path.is_dir():
        raise OutputError(f"{option} {path} is a folder", hint=f"name a file: {path / name}")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{option} {path}: {folder} may not be written", hint="choose another folder")


def copy_perf(records: Path, target: Path | None) -> None:
    """Copies a run's dump, if both are there; the paths in it, relative to the dump, still lead to the media."""
    source = records / PERF_FILE
    if target is None or not source.exists():
        return
    dump = read_perf(source)
    for sample in dump.samples:
        for output in sample.outputs:
            output.path = os.path.relpath(records / output.path, target.absolute().parent)
    if dump.profile is not None:
        dump.profile = dump.profile.seen(lambda path: os.path.relpath(records / path, target.absolute().parent))
    write_perf(target, dump)

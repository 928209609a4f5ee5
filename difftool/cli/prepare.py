"""From the command line to a plan, and what is printed of one."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from difftool.cli.options import RecipeArguments
from difftool.cli.sglang import cache_variables_warning
from difftool.cli.usage import UsageError
from difftool.errors import OutputError, Problem, RecipeError
from difftool.launch.records import PERF_FILE
from difftool.launch.resume import check_same_work, find_run, recorded_plan
from difftool.planning.make import RunOptions, make_plan, output_folder
from difftool.planning.plan import Plan
from difftool.recipe.flags import flag_overrides, parse_set
from difftool.recipe.load import load_recipe
from difftool.report.perf import read_perf, write_perf

if TYPE_CHECKING:
    from difftool.recipe.flags import Override
    from difftool.recipe.load import Loaded

MEDIA_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".npz", ".mp4", ".gif", ".wav")


def plan_for(arguments: RecipeArguments) -> Plan:
    """The plan of what the command line asks for. Raises RecipeError with every problem of the recipe."""
    return make_plan(_load(arguments), run=run_options(arguments))


def plan_to_resume(arguments: RecipeArguments, run_id: str | None) -> tuple[Plan, Path]:
    """The same, for a run that did not end, and its records. Raises RecipeError where that run made something else."""
    loaded, options = _load(arguments), run_options(arguments)
    records = find_run(Path(output_folder(loaded.recipe.output.dir, options)), run_id)
    recorded = recorded_plan(records)
    plan = make_plan(loaded, run=replace(options, recorded=recorded))
    check_same_work(plan, recorded, records.name)
    return plan, records


def _load(arguments: RecipeArguments) -> "Loaded":
    warning = cache_variables_warning(os.environ)
    if warning:
        print(warning, file=sys.stderr)
    return load_recipe(chosen_recipe(arguments), read_overrides(arguments))


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


def read_overrides(arguments: RecipeArguments) -> "list[Override]":
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
    )


def _names_a_file(output: str) -> bool:
    path = Path(output)
    return path.suffix.lower() in MEDIA_SUFFIXES and not output.endswith(os.sep) and not path.is_dir()


def print_plan(plan: Plan, *, as_json: bool) -> None:
    from difftool.planning.render import render_plan

    print(plan.model_dump_json(by_alias=True) + "\n" if as_json else render_plan(plan), end="")


def print_resolved(plan: Plan) -> None:
    from difftool.planning.render import render_resolved

    print(render_resolved(plan), end="")


def check_target(path: Path) -> None:
    """That a perf dump can be written there, asked before anything is launched. Raises OutputError."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"--perf-dump-path {path}: there is no folder {folder}", hint=f"mkdir -p {folder}")
    if path.is_dir():
        raise OutputError(f"--perf-dump-path {path} is a folder", hint=f"name a file: {path / 'perf.json'}")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"--perf-dump-path {path}: {folder} may not be written", hint="choose another folder")


def copy_perf(records: Path, target: Path | None) -> None:
    """Copies a run's dump, if both are there; the paths in it, relative to the dump, still lead to the media."""
    source = records / PERF_FILE
    if target is None or not source.exists():
        return
    dump = read_perf(source)
    for sample in dump.samples:
        for output in sample.outputs:
            output.path = os.path.relpath(records / output.path, target.absolute().parent)
    write_perf(target, dump)

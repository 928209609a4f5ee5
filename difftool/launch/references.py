"""Makes the references of a run that are not there yet, by a run of their own."""

import os
from collections.abc import Callable
from pathlib import Path

from difftool.launch.events import Event
from difftool.launch.records import open_records
from difftool.launch.supervise import RunResult
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.plan import Plan
from difftool.recipe.load import load_recipe


def references_missing(plan: Plan) -> bool:
    """Whether a run has to make what the outputs of this one are compared with."""
    return plan.quality.recipe is not None and not all(os.path.isfile(file) for file in plan.quality.files)


def make_references(
    plan: Plan, run: Callable[..., RunResult], *, on_event: Callable[[Event], None], verbose: bool = False
) -> None:
    """Leaves every file of `plan.quality.files` in its place; `run` is that of this package, and raises what it raises.

    The records of that run lie beside them.
    """
    assert plan.quality.recipe is not None, plan.quality
    folder = str(Path(plan.quality.files[0]).parent)
    options = RunOptions(output_dir=folder, save_output=False)
    reference = make_plan(load_recipe(plan.quality.recipe), run=options)
    run(reference, open_records(reference, raw_dir=folder), on_event=on_event, verbose=verbose)

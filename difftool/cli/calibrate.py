"""`difftool calibrate`: fits TeaCache's polynomial to a model, and writes the recipe that uses it."""

import json
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.generate import VerboseFlag
from difftool.cli.options import RecipeArguments, recipe_command
from difftool.cli.usage import UsageError

if TYPE_CHECKING:
    from difftool.cli.progress import Mode
    from difftool.recipe.load import Loaded

TargetOption = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="the recipe with what was found")]
DegreeOption = Annotated[
    int, typer.Option("--degree", metavar="N", min=1, max=8, help="of the polynomial; 4 as all published ones")
]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="print only the path of the recipe")]
JsonFlag = Annotated[bool, typer.Option("--json", help="print what was found as one JSON object")]
OWN = ("output", "save_output", "return_frames", "keep_going")  # nothing is made that they could be about
MEASURE = {
    "cache.backend": "teacache",
    "cache.teacache.threshold": 0,
    "cache.teacache.coefficients": [1.0, 0.0],
    "cache.min_hit_rate": 0,
    "quality": {},
}


def register(app: typer.Typer) -> None:
    recipe_command(app, "calibrate", calibrate, without=OWN)


def calibrate(
    arguments: RecipeArguments,
    *,
    output: TargetOption,
    degree: DegreeOption = 4,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Fit TeaCache's coefficients to a recipe, and write one that uses them."""
    from difftool.cli.prepare import check_target, chosen_recipe, read_overrides
    from difftool.files import write_atomic
    from difftool.planning.render import render_recipe
    from difftool.recipe.load import load_recipe
    from difftool.report.fit import fit_changes

    if quiet and as_json:
        raise UsageError("--quiet and --json exclude each other", hint="--json prints one object")
    check_target(output, "--output", "teacache.yaml")
    loaded = load_recipe(chosen_recipe(arguments), read_overrides(arguments))
    plan, changes = _measured(loaded, mode="quiet" if quiet else "plain", verbose=verbose)
    fit = fit_changes(changes, degree)
    asked = loaded.recipe.model_dump(mode="json", by_alias=True)
    threshold = asked["cache"]["teacache"]["threshold"]
    found = {
        "threshold": round(2 * fit.mean, 4) if threshold == "auto" else threshold,
        "coefficients": list(fit.coefficients),
    }
    cache = {"backend": "teacache", "teacache": found, "min_hit_rate": asked["cache"]["min_hit_rate"]}
    recipe = {**plan, "quality": asked["quality"], "cache": cache}
    write_atomic(output, render_recipe(recipe, {}).encode())
    if as_json:
        typer.echo(json.dumps({"recipe": str(output), "degree": degree, **asdict(fit), **found}))
        return
    if not quiet:
        why = ", which reuses about every second step" if threshold == "auto" else ""
        typer.echo(f"{fit.points} changes, degree {degree}: R2 {fit.r2:.3f}, rms {fit.rms:.2g} of {fit.mean:.2g}")
        typer.echo(f"coefficients {', '.join(f'{value:.6g}' for value in fit.coefficients)}")
        typer.echo(f"threshold {found['threshold']:g}{why}")
    typer.echo(str(output))


def _measured(loaded: "Loaded", *, mode: "Mode", verbose: bool) -> tuple[dict[str, Any], list[tuple[float, float]]]:
    """The recipe as it was resolved, and the changes of every step of its items."""
    from difftool import launch
    from difftool.cli.progress import make_listener
    from difftool.planning.make import make_plan
    from difftool.planning.outputs import RunOptions
    from difftool.recipe.load import Override, lay_over
    from difftool.report.fit import measured_changes
    from difftool.report.perf import read_perf
    from difftool.report.reuse import CacheUse

    measuring = lay_over(loaded, [Override(key, value, "calibrate") for key, value in MEASURE.items()])
    with tempfile.TemporaryDirectory(prefix="difftool-calibrate-") as folder:
        plan = make_plan(measuring, run=RunOptions(output_dir=folder, save_output=False))
        with make_listener(mode) as listener:
            run = partial(launch.run, on_event=listener.take, verbose=verbose)
            result = launch.run_to_the_end(plan, launch.open_records(plan), run, told=partial(typer.echo, err=True))
        assert result.perf is not None, result
        samples = read_perf(result.perf).effective["cache"]["samples"]
    uses = [CacheUse.model_validate({"kinds": [], **sample}) for sample in samples]
    return dict(plan.recipe), measured_changes(uses)

"""`launch.on_oom: fallback`: a run that has no memory left goes on with more of its weights away.

Only what changes no output is tried, in the order of the ladder of `memory.budget`, and never in the place of what the
recipe asks for by name. The run is taken up as with `--resume`: what is made stays.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from difftool.errors import DifftoolError, OutOfMemoryError, PlanError, RecipeError
from difftool.launch.failure import WorkerReport
from difftool.launch.resume import take_up
from difftool.launch.supervise import RunResult
from difftool.planning.budget import Barred, Modes, barred_by, choose, fixed, further
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.plan import Choice, Plan
from difftool.recipe.load import load_recipe
from difftool.recipe.overrides import Override

WHO = "launch.on_oom"


def run_to_the_end(
    plan: Plan, records: Path, run: Callable[[Plan, Path], RunResult], *, told: Callable[[str], None]
) -> RunResult:
    """`run`, again where memory ran out and the plan asks for it; `told` hears what is done about it.

    Raises what `run` raises: OutOfMemoryError once nothing is left to send away.
    """
    while True:
        try:
            return run(plan, records)
        except OutOfMemoryError as error:
            more = next_plan(plan, error) if plan.on_oom == "fallback" else None
            if more is None:
                raise
            names = ", ".join(choice.key + "=" + choice.value for choice in more.choices if _is_ours(choice))
            told(f"{error.message.splitlines()[0]}; goes on with {names}")
            plan = more
            take_up(plan, records)


def next_plan(plan: Plan, error: OutOfMemoryError) -> Plan | None:
    """The same items with the next rung of the ladder that the rest of the recipe allows; None where there is none."""
    cause = error.__cause__
    stage = cause.event.stage if isinstance(cause, WorkerReport) else None
    barred = barred_by(plan.stages)
    free = _free(plan, barred)
    while (found := further(free, stage, barred=barred)) is not None:
        # what a budget has sent away stays so, or another might come back for what goes now
        steps = {role: mode["name"] for role, mode in free.items() if mode["name"] not in ("auto", "none")}
        steps |= found
        try:
            return _replanned(plan, steps, error)
        except (RecipeError, PlanError) as refusal:
            refused = _refused(refusal, steps)
            free = {role: mode for role, mode in free.items() if role not in refused}
    return None


def _free(plan: Plan, barred: Barred) -> Modes:
    """Where the weights are of the roles whose offload nobody asked for by name."""
    asked = fixed({role: stage["offload"] for role, stage in plan.stages.items()})
    now = (choose(plan.budget, asked, {}, barred=barred) if plan.budget is not None else None) or asked
    return {role: now[role] for role, mode in asked.items() if mode["name"] == "auto" or _came_from_us(plan, role)}


def _refused(refusal: DifftoolError, steps: Mapping[str, str]) -> Collection[str]:
    """The roles that a refusal is about, as far as it says so."""
    keys = [problem.key for problem in refusal.problems] if isinstance(refusal, RecipeError) else []
    return [role for role in steps if any(key.startswith(f"stages.{role}.") for key in keys)] or steps


def _replanned(plan: Plan, steps: Mapping[str, str], error: OutOfMemoryError) -> Plan:
    """The same items with these names for the offload of some roles."""
    changes = [Override(f"stages.{role}.offload", name, WHO) for role, name in steps.items()]
    again = make_plan(load_recipe(plan.recipe, changes), run=RunOptions(output_dir=plan.output.dir, recorded=plan))
    kept = {choice.key: choice for choice in plan.choices if _is_ours(choice)}
    for role, name in steps.items():
        key = f"stages.{role}.offload"
        kept[key] = Choice(key=key, value=name, reason=f"{WHO}: {error.message.splitlines()[0]}")
    others = [choice for choice in again.choices if choice.key not in kept]
    origins = {**plan.provenance, **dict.fromkeys(kept, WHO)}
    made = {key: getattr(again, key) for key in ("stages", "recipe", "recipe_sha256", "budget", "puts_encoders_off")}
    return plan.model_copy(update={**made, "provenance": origins, "choices": (*others, *kept.values())})


def _came_from_us(plan: Plan, role: str) -> bool:
    return any(choice.key == f"stages.{role}.offload" and _is_ours(choice) for choice in plan.choices)


def _is_ours(choice: Choice) -> bool:
    return choice.reason.startswith(f"{WHO}: ")

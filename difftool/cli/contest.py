"""From the command line of `difftool bench` to the arms that race."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from difftool.cli.options import RecipeArguments
from difftool.cli.prepare import chosen_recipe, read_overrides
from difftool.cli.progress import Mode
from difftool.cli.quality import prepare_references
from difftool.cli.usage import UsageError
from difftool.errors import RecipeError
from difftool.launch.arm import Arm, LocalArm, plan_arm
from difftool.launch.far_arm import FarArm
from difftool.planning.arms import (
    BASE,
    DIFFUSERS,
    ArmSpec,
    differs,
    diffusers_arm,
    parse_sweep,
    same_request,
    sweep_arms,
    with_overrides,
)
from difftool.planning.plan import Plan
from difftool.recipe.load import Loaded, load_recipe
from difftool.recipe.overrides import Override
from difftool.recipe.prompts import read_prompts
from difftool.recipe.schema import Sweep

ARM = re.compile(r"(?P<name>[\w.-]+)=(?P<rest>.+)")
ORIGIN = "bench"  # of what the command itself sets
REPEATS, WARMUP = 8, 1


@dataclass(frozen=True)
class Asked:
    """What `bench` was told of arms."""

    arms: Sequence[str] = ()
    vs: str | None = None
    sweep: Sequence[str] = ()


@dataclass(frozen=True)
class Contest:
    """Who races, the base first. `plans` are those of this environment, by name; `kin` are arms that make the same as
    the base by another backend, which compare with it though their workload is written otherwise.
    """

    specs: Sequence[ArmSpec]
    plans: Mapping[str, Plan]
    kin: frozenset[str]
    repeats: int
    warmup: int
    save_output: bool

    def arms(self, mode: Mode, *, verbose: bool) -> list[Arm]:
        """The arms, ready to load, with what their outputs are compared with.

        Raises what making that, and the planning of another environment, end with.
        """
        for plan in self.plans.values():
            prepare_references(plan, alone=True, mode=mode, verbose=verbose)
        return [
            LocalArm(spec.name, self.plans[spec.name], verbose=verbose)
            if spec.python is None
            else FarArm(spec, save_output=self.save_output)
            for spec in self.specs
        ]


def gather(arguments: RecipeArguments, asked: Asked) -> Contest:
    """Plans every arm of this environment. Raises RecipeError and UsageError: nothing was launched."""
    source, overrides = chosen_recipe(arguments), read_overrides(arguments)
    loaded = load_recipe(source, overrides)
    repeats, warmup = _typed_count(loaded, "repeats", REPEATS), _typed_count(loaded, "warmup", WARMUP)
    fixed = [
        Override("sweep", None, ORIGIN),
        Override("perf.repeats", max(2, repeats), ORIGIN),  # a single one would share encodings between its items
        Override("perf.warmup", warmup, ORIGIN),
    ]
    base = ArmSpec(BASE, source, (*overrides, *fixed))
    plan = plan_arm(_tagged(base, loaded), save_output=arguments.save_output)
    drawn = _drawn(loaded, plan)
    others = [_with_drawn(_read_arm(text, base), drawn, loaded) for text in asked.arms]
    base = with_overrides(base, BASE, drawn)
    others += [diffusers_arm(base, plan)] if asked.vs else []
    points = _sweep(base, loaded.recipe.sweep, asked.sweep)
    specs = [_tagged(spec, loaded) for spec in (base, *others, *points)]
    _check_names([spec.name for spec in specs])
    plans = {spec.name: plan_arm(spec, save_output=arguments.save_output) for spec in specs if spec.python is None}
    if any(plan.on_oom == "fallback" for plan in plans.values()):
        raise UsageError("launch.on_oom=fallback: a race measures recipes as they are", hint="use launch.on_oom=fail")
    same = {spec.name for spec in points if not differs(plans[BASE], plans[spec.name])}  # the base stands for them
    if points and len(same) == len(points):
        raise UsageError("--sweep: no point differs from the recipe itself", hint="give other values")
    return Contest(
        specs=[spec for spec in specs if spec.name not in same],
        plans={name: found for name, found in plans.items() if name not in same},
        kin=frozenset(n for n in plans if n == DIFFUSERS and asked.vs and same_request(plans[BASE], plans[n])),
        repeats=repeats,
        warmup=warmup,
        save_output=arguments.save_output,
    )


def _drawn(loaded: Loaded, plan: Plan) -> list[Override]:
    """The seeds that the plan drew where the recipe says `random`: every arm makes the same."""
    found = [Override("sampling.seed", plan.recipe["sampling"]["seed"], ORIGIN)] if _seed(loaded) == "random" else []
    if any(entry.get("seed") == "random" for entry in _entries(loaded)):
        found.append(Override("sampling.prompts", plan.recipe["sampling"]["prompts"], ORIGIN))
    return found


def _with_drawn(spec: ArmSpec, drawn: Sequence[Override], base: Loaded) -> ArmSpec:
    """The arm with those of the seeds that it asks for as the base does; what else it makes is its own."""
    written = {"sampling.seed": _seed, "sampling.prompts": _entries}
    try:
        own = load_recipe(spec.recipe, spec.overrides)
    except RecipeError:  # told by its own planning, or understood by that of another environment
        return spec
    alike = [override for override in drawn if written[override.key](own) == written[override.key](base)]
    return with_overrides(spec, spec.name, alike)


def _seed(loaded: Loaded) -> int | str:
    return loaded.recipe.sampling.seed


def _entries(loaded: Loaded) -> list[dict[str, Any]]:
    """The mappings of `sampling.prompts` as they are written."""
    prompts = loaded.recipe.sampling.prompts
    return [] if prompts is None else read_prompts(prompts, loaded.base)


def _typed_count(loaded: Loaded, key: str, default: int) -> int:
    """A count of the command line. The file's are for `generate`, where one picture needs no repeats."""
    value = getattr(loaded.recipe.perf, key)
    return value if loaded.provenance.get(f"perf.{key}", "").startswith("--") and value != "auto" else default


def _tagged(spec: ArmSpec, loaded: Loaded) -> ArmSpec:
    """Its dump carries the arm's name, unless the command line has a tag."""
    if loaded.provenance.get("perf.tag", "").startswith("--"):
        return spec
    return with_overrides(spec, spec.name, [Override("perf.tag", spec.name, ORIGIN)])


def _read_arm(text: str, base: ArmSpec) -> ArmSpec:
    """`NAME=RECIPE[@PYTHON]`; without a recipe, `NAME=@PYTHON`, it is the base's own."""
    found = ARM.fullmatch(text)
    if found is None:
        raise UsageError(f"--arm {text}: write NAME=RECIPE or NAME=RECIPE@PYTHON", hint="such as --arm new=new.yaml")
    recipe, at, python = found["rest"].rpartition("@")
    if not at or Path(found["rest"]).exists():
        return replace(base, name=found["name"], recipe=found["rest"])
    path = shutil.which(os.path.expanduser(python))
    if path is None:
        hint = "give the path of an environment's python, such as .venv-base/bin/python"
        raise UsageError(f"--arm {text}: {python!r} is no program", hint=hint)
    return replace(base, name=found["name"], recipe=recipe or base.recipe, python=path)


def _sweep(base: ArmSpec, section: Sweep | None, flags: Sequence[str]) -> list[ArmSpec]:
    """The points of the recipe's section with those of the command line, whose values replace a key's of the file."""
    typed = dict(parse_sweep(text) for text in flags)
    if section is None:
        return sweep_arms(base, Sweep(matrix=typed), "--sweep") if typed else []
    matrix = {**section.matrix, **typed}
    return sweep_arms(base, section.model_copy(update={"matrix": matrix}), "sweep")


def _check_names(names: Sequence[str]) -> None:
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        own = f"; {BASE} is the RECIPE itself" if twice == BASE else ""
        raise UsageError(f"two arms are called {twice!r}{own}", hint="give each another name: --arm NAME=RECIPE")

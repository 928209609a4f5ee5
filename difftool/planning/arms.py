"""The arms of a race: the recipe of each, from what the command line or a `sweep` section names."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from difftool.errors import Problem, RecipeError
from difftool.planning.plan import Plan
from difftool.planning.tree import leaves
from difftool.recipe.nodes import plain
from difftool.recipe.overrides import Override, key_fault, override_node
from difftool.recipe.schema import Recipe, Sweep

BASE = "base"
DIFFUSERS = "diffusers"
SAME_RUN = ("name", "output", "perf", "sweep", "quality", "serve")  # no part of how it runs
ONE_DEVICE = {"num_gpus": 1, "dp": 1, "cfg": 1, "sp": 1, "ulysses": 1, "ring": 1, "tp": 1, "hsdp": "none"}


@dataclass(frozen=True)
class ArmSpec:
    """One arm: what RECIPE is on a command line, and what is laid over it. `python`: another environment's."""

    name: str
    recipe: str
    overrides: tuple[Override, ...] = ()
    python: str | None = None


def sweep_points(matrix: Mapping[str, Sequence[Any]], exclude: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every combination of the values, the last key's first, without those that an entry of `exclude` describes."""
    points = [dict(zip(matrix, values, strict=True)) for values in itertools.product(*matrix.values())]
    return [point for point in points if not any(_is(point, left_out) for left_out in exclude)]


def _is(point: Mapping[str, Any], described: Mapping[str, Any]) -> bool:
    return all(key in point and point[key] == value for key, value in described.items())


def sweep_arms(base: ArmSpec, sweep: Sweep, origin: str) -> list[ArmSpec]:
    """One arm for every point. Raises RecipeError for more than `max_points`, and an exclusion that leaves none out."""
    exclude = [dict(leaves(entry)) for entry in sweep.exclude]
    every = sweep_points(sweep.matrix, [])
    for entry in exclude:
        if not any(_is(point, entry) for point in every):
            raise RecipeError(f"sweep.exclude: {_named(entry)} is no point of the matrix")
    points = sweep_points(sweep.matrix, exclude)
    if len(points) > sweep.max_points:
        hint = "raise sweep.max_points, or leave some out with sweep.exclude"
        raise RecipeError(f"sweep: {len(points)} points, more than max_points={sweep.max_points}", hint=hint)
    return [with_overrides(base, _named(point), [Override(k, v, origin) for k, v in point.items()]) for point in points]


def parse_sweep(text: str) -> tuple[str, list[Any]]:
    """`key=a,b` of one `--sweep`: the key and its values, typed by the schema. Raises RecipeError."""
    key, equals, values = text.partition("=")
    key, origin = key.strip(), f"--sweep {text}"
    if not equals or not values.strip():
        raise RecipeError([Problem("", "write key=value,value, for example sampling.seed=7,8", origin)])
    if (message := key_fault(key)) is not None:
        raise RecipeError([Problem(key, message, origin)])
    return key, [_typed(key, value.strip(), origin) for value in _split(values)]


def _split(text: str) -> list[str]:
    """At the commas outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _typed(key: str, text: str, origin: str) -> Any:
    node = override_node(Override(key, text, origin, parse=True))
    for part in key.split("."):
        node = node.mapping[part]
    return plain(node)


def differs(base: Plan, other: Plan) -> bool:
    """Whether two plans would run differently: by more than what is asked of their measurement and outputs."""
    return any(base.recipe[key] != other.recipe[key] for key in base.recipe if key not in SAME_RUN)


def _named(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in point.items())


def with_overrides(base: ArmSpec, name: str, overrides: Sequence[Override]) -> ArmSpec:
    """The same recipe with more laid over it."""
    return replace(base, name=name, overrides=(*base.overrides, *overrides))


def diffusers_arm(base: ArmSpec, plan: Plan) -> ArmSpec:
    """The pipeline that diffusers documents for the base's model, `from_pretrained` and its call, on one device.

    It gets every sampling value that the base resolves to, so that both make the same. Raises RecipeError where the
    base is that already.
    """
    if plan.model.backend == "diffusers":
        raise RecipeError("--vs diffusers: diffusers runs this recipe already")
    origin = "--vs diffusers"
    default = Recipe.model_validate({"model": "any"}).model_dump(mode="json", by_alias=True)["sampling"]
    sampling = {
        key: value
        for key, value in plan.recipe["sampling"].items()
        if value is not None and value != default[key] and key not in ("prompt", "prompts")
    }
    found = [Override("model.backend", "diffusers", origin)]
    found += [Override(f"sampling.{key}", value, origin) for key, value in sampling.items()]
    if plan.degrees.num_gpus > 1:
        found.append(Override("parallel", ONE_DEVICE, origin))
        found += [Override("stages.text_encoding.tp", 1, origin), Override("stages.decoding.parallel", "auto", origin)]
    return with_overrides(base, DIFFUSERS, found)


def same_request(base: Plan, other: Plan) -> bool:
    """Whether two plans of one model make the same, though its backend differs: each value that the base knows is the
    other's too. What the base has no value for, its model does not read.
    """
    if [(i.id, i.output, i.seed, i.prompt) for i in base.items] != [
        (i.id, i.output, i.seed, i.prompt) for i in other.items
    ]:
        return False
    pairs = zip(base.items, other.items, strict=True)
    return _weights(base) == _weights(other) and all(
        value is None or dict(leaves(theirs.sampling)).get(key) == value
        for ours, theirs in pairs
        for key, value in leaves(ours.sampling)
    )


def _weights(plan: Plan) -> dict[str, Any]:
    weights = ("hub_id", "folder", "revision", "components")
    return {**plan.model.model_dump(include=set(weights)), "loras": plan.loras}

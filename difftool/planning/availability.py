"""Recipe keys that take effect. Any other key set to something else than its default is refused, never ignored."""

from collections.abc import Mapping
from typing import Any

from difftool.errors import Problem
from difftool.planning.plan import Degrees
from difftool.planning.tree import ancestors, leaves
from difftool.recipe.schema import Recipe

ANY = None
OFF = ("auto", "none")

# key or section -> the values that take effect; ANY: all that the schema allows
AVAILABLE: Mapping[str, tuple[object, ...] | None] = {
    "schema": ANY,
    "name": ANY,
    "extends": ANY,
    "model.path": ANY,
    "model.id": ANY,
    "model.revision": ANY,
    "model.backend": ("auto", "native"),
    "stages.text_encoding.precision": ANY,
    "stages.text_encoding.offload": OFF,
    "stages.denoising.precision": ANY,
    "stages.denoising.attention": ("auto", "torch_sdpa"),
    "stages.denoising.compile": OFF,
    "stages.denoising.offload": OFF,
    "stages.denoising.kernels": OFF,
    "stages.decoding.precision": ANY,
    "stages.decoding.tiling": OFF,
    "stages.decoding.parallel": OFF,
    "stages.decoding.offload": OFF,
    "stages.image_encoding.offload": OFF,
    "parallel": ANY,  # solved, then limited by check_degrees
    "sampling": ANY,  # checked against the family's facts
    "sampling.scheduler.name": ("auto",),
    "launch.device": ANY,
    "launch.launcher": ("auto", "direct"),
    "launch.stall_timeout_s": ANY,
    "launch.threads": ANY,
    "output": ANY,  # its format is checked against what the family makes
    "perf": ANY,
}
UNAVAILABLE_AXES = ("cfg", "ring", "ulysses", "tp")


def check_available(recipe: Mapping[str, Any]) -> list[Problem]:
    """One problem for each key whose value would do nothing."""
    default = dict(leaves(Recipe.model_validate({"model": "any"}).model_dump(mode="json", by_alias=True)))
    found = [_check(key, value, default) for key, value in leaves(recipe) if value != default.get(key)]
    return list(dict.fromkeys(problem for problem in found if problem is not None))


def check_degrees(degrees: Degrees) -> list[Problem]:
    """One problem for each axis that cannot be split yet, whether it was asked for or solved."""
    split = [(axis, value) for axis in UNAVAILABLE_AXES if (value := getattr(degrees, axis)) > 1]
    if degrees.hsdp != "none":
        split.append(("hsdp", degrees.hsdp))
    hint = f"use dp={degrees.num_gpus}, a replica on each rank, for many prompts"
    return [Problem(f"parallel.{axis}", f"parallel.{axis}={value}: not available yet; {hint}") for axis, value in split]


def _check(key: str, value: object, default: Mapping[str, object]) -> Problem | None:
    listed = next((name for name in ancestors(key) if name in AVAILABLE), None)
    allowed = AVAILABLE[listed] if listed is not None else ()
    if allowed is ANY or value in allowed:
        return None
    unset = next((name for name in ancestors(key) if name != key and name in default), None)
    if unset is not None:  # a section that is absent by default is refused as a whole
        return Problem(unset, f"{unset}: not available yet")
    offer = f"; use {' or '.join(str(a) for a in allowed)}" if allowed else ""
    return Problem(key, f"{key}={_shown(value)}: not available yet{offer}")


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."

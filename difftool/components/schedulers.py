"""Schedulers made fresh for each request, from the checkpoint's config and the recipe's changes."""

from collections.abc import Mapping
from difflib import get_close_matches
from inspect import signature
from typing import Any

from difftool.components.unipc import HostUniPC
from difftool.errors import PlanError, Problem, RecipeError

SHIFTS = ("flow_shift", "shift")  # the one a scheduler's config has: UniPC the first, flow-match Euler the second


def fresh_scheduler(loaded: Any, schedule: Mapping[str, Any]) -> Any:
    """A new scheduler of the loaded one's class, or the one that stands in for it and does not wait for the device.

    `flow_shift` sets its shift; `config` overrides its fields. Raises RecipeError for one that it has not.
    """
    check_config(type(loaded), schedule)
    changes = dict(schedule.get("config") or {})
    shift = schedule.get("flow_shift", "auto")
    if shift != "auto":
        key = next((key for key in SHIFTS if key in loaded.config), None)
        if key is None:
            raise PlanError(f"sampling.scheduler.flow_shift={shift}: {type(loaded).__name__} has no time shift")
        changes |= {key: shift, "use_dynamic_shifting": False}
    scheduler = type(loaded).from_config(loaded.config, **changes)
    return HostUniPC.from_config(scheduler.config) if HostUniPC.covers(scheduler) else scheduler


def check_config(kind: type, schedule: Mapping[str, Any]) -> None:
    """Raises RecipeError for a key of `config` that a scheduler of this class has not: diffusers would drop it."""
    known = [name for name in signature(kind).parameters if name != "kwargs"]
    for key in schedule.get("config") or {}:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            advice = f", did you mean {close[0]!r}?" if close else f"; it has {', '.join(known)}"
            name = f"sampling.scheduler.config.{key}"
            raise RecipeError([Problem(name, f"{name}: {kind.__name__} has no such setting{advice}")])


def shift_by_length(config: Mapping[str, Any], tokens: int, *, max_shift: float = 1.15) -> float:
    """`mu`, the time shift that a schedule takes for this number of image tokens: linear in it.

    `max_shift` is that of the reference pipeline, for a scheduler whose config has none. Source: `calculate_shift`,
    of which diffusers has a copy in each pipeline.
    """
    shortest, longest = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    slope = (most - least) / (longest - shortest)
    shift: float = tokens * slope + (least - slope * shortest)
    return shift


def check_steps(scheduler: Any, steps: int) -> None:
    """Raises RecipeError for a single step of a schedule that is stretched to end at `shift_terminal`: diffusers makes
    NaN of it.
    """
    if steps == 1 and scheduler.config.get("shift_terminal"):
        ends = scheduler.config["shift_terminal"]
        raise RecipeError(
            f"sampling.num_inference_steps=1: this checkpoint's schedule starts at 1 and ends at {ends}; use 2 or more"
        )

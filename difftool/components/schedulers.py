"""Schedulers made fresh for each request, from the checkpoint's config and the recipe's changes."""

from collections.abc import Mapping
from typing import Any


def fresh_scheduler(loaded: Any, schedule: Mapping[str, Any]) -> Any:
    """A new scheduler of the loaded one's class. `flow_shift` sets its shift; `config` overrides its fields."""
    changes = dict(schedule.get("config") or {})
    shift = schedule.get("flow_shift", "auto")
    if shift != "auto":
        changes |= {"shift": shift, "use_dynamic_shifting": False}
    return type(loaded).from_config(loaded.config, **changes)

"""From a plan to a runnable pipeline: the one place that knows every transform, and their order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from difftool.acceleration import attention, precision
from difftool.components.load import load_components
from difftool.components.loaded import Components
from difftool.components.locate import locate
from difftool.errors import PlanError
from difftool.facts import TORCH_DTYPES, Applied, Refused
from difftool.pipeline.composed import ComposedPipeline
from difftool.pipeline.config import PipelineConfig
from difftool.pipeline.registry import load_config
from difftool.planning.plan import Plan
from difftool.platforms import Platform

# Transforms are applied in this order, each for the reason beside it; a plan may use any subset.
ORDER = (
    ("precision", "first: it decides the dtype weights are read in"),
    ("quantization", "on weights of their final dtype"),
    ("lora", "merged before anything wraps or splits the layers it names"),
    ("attention", "before the cache counts and the shards split what the processors see"),
    ("cache", "before sharding, or its block wrappers see shards where they expect whole sequences"),
    ("shard", "before compile, which traces the collectives in"),
    ("compile", "after all that changes a forward"),
    ("offload", "last: it moves finished modules"),
)


@dataclass(frozen=True)
class Assembled:
    """A pipeline ready to run, its loaded components, and what was applied to them (`effective` of the dump)."""

    config: PipelineConfig
    pipeline: ComposedPipeline
    components: Components
    effective: Mapping[str, Mapping[str, object]]


def assemble(plan: Plan, platform: Platform, notify: Callable[..., None]) -> Assembled:
    """Composes, resolves every transform, loads, applies. Raises before weights load where that is knowable."""
    config = load_config(plan.model.family)
    pipeline = ComposedPipeline(config.stages(), available=config.facts.components)
    outcomes = {
        "precision": precision.resolve(
            {role: s["precision"] for role, s in plan.stages.items()}, config.roles, platform
        ),
        "attention": attention.resolve(plan.stages["denoising"]["attention"]),
    }
    applied = {name: _or_refuse(outcomes[name]) for name, _ in ORDER if name in outcomes}
    folder = locate(plan.model, config.facts.components, lambda: notify("heartbeat"))
    dtypes: dict[str, torch.dtype] = {
        name: getattr(torch, TORCH_DTYPES[str(value)]) for name, value in applied["precision"].detail.items()
    }
    components = load_components(
        config.facts.components,
        config.holder,
        folder,
        dtypes=dtypes,
        device=platform.device,
        loaded=lambda **values: notify("component_loaded", **values),
    )
    attention.apply(components, config.roles["denoising"], applied["attention"])
    effective: dict[str, Any] = {name: {"status": "applied", **outcome.detail} for name, outcome in applied.items()}
    return Assembled(config, pipeline, components, effective)


def _or_refuse(outcome: Applied | Refused) -> Applied:
    if isinstance(outcome, Refused):
        raise PlanError(outcome.reason)
    return outcome

"""Recipe keys that take effect. Any other key set to something else than its default is refused, never ignored."""

from collections.abc import Mapping
from typing import Any

from difftool.errors import Problem
from difftool.planning.tree import ancestors, leaves
from difftool.recipe.schema import Recipe

ANY = None

OFF = ("auto", "none")

ELSEWHERE = {"sweep": "only `difftool bench` runs it, an arm for each point; sweep=null leaves it out"}

# key or section -> the values that take effect; ANY: all that the schema allows
AVAILABLE: Mapping[str, tuple[object, ...] | None] = {
    "schema": ANY,
    "name": ANY,
    "extends": ANY,
    "model.path": ANY,
    "model.id": ANY,
    "model.revision": ANY,
    "model.backend": ANY,
    "model.code": ANY,  # imported by find_checkpoint
    "model.lora": ANY,  # checked by plan_loras
    "model.components": ANY,  # checked by replace_components
    "model.diffusers_kwargs": ANY,  # checked against the pipeline's call
    "model.trust_remote_code": ANY,  # limited by check_foreign
    "stages.text_encoding.precision": ANY,
    "stages.text_encoding.offload": ANY,
    "stages.text_encoding.compile": ANY,  # limited to what a compiler is there for, by the worker
    "stages.text_encoding.quantization": ANY,  # limited to what the device computes, by the worker
    "stages.denoising.precision": ANY,
    "stages.text_encoding.attention": ANY,  # limited to what each encoder has, by the worker
    "stages.denoising.attention": ANY,  # checked by check_attention
    "stages.denoising.quantization": ANY,
    "stages.denoising.compile": ANY,
    "stages.denoising.offload": ANY,
    "stages.denoising.kernels": ("auto",),
    "stages.decoding.precision": ANY,
    "stages.decoding.tiling": ANY,  # limited to what the VAE has, by the worker
    "stages.decoding.slicing": ANY,
    "stages.decoding.parallel": ANY,
    "stages.decoding.compile": ANY,
    "stages.decoding.offload": ANY,
    "stages.image_encoding.precision": ANY,
    "stages.image_encoding.offload": ANY,
    "parallel": ANY,  # solved
    "cache": ANY,  # checked by check_cache
    "stages.text_encoding.tp": ANY,  # checked by check_conflicts
    "sampling": ANY,  # checked against the family's facts
    "sampling.scheduler.name": ("auto",),
    "launch.device": ANY,
    "launch.devices": ANY,  # checked by check_launch
    "launch.offline": ANY,
    "launch.launcher": ANY,
    "launch.nnodes": ANY,
    "launch.node_rank": ANY,
    "launch.rdzv_endpoint": ANY,
    "launch.prompt_embeds_dir": ANY,
    "launch.stall_timeout_s": ANY,
    "launch.threads": ANY,
    "launch.pin_memory": ANY,
    "launch.on_oom": ANY,
    "memory.budget": ANY,  # checked by plan_budget
    "output": ANY,  # its format is checked against what the family makes
    "perf": ANY,
    "quality": ANY,  # its reference is checked by plan_quality
}


def check_available(recipe: Mapping[str, Any]) -> list[Problem]:
    """One problem for each key whose value would do nothing."""
    default = dict(leaves(Recipe.model_validate({"model": "any"}).model_dump(mode="json", by_alias=True)))
    found = [_check(key, value, default) for key, value in leaves(recipe) if value != default.get(key)]
    return list(dict.fromkeys(problem for problem in found if problem is not None))


def takes_effect(key: str, value: object) -> bool:
    """Whether this version applies a value of a recipe key: for what is told of it, where there is no plan to check."""
    default = Recipe.model_validate({"model": "any"}).model_dump(mode="json", by_alias=True)
    return _check(key, value, dict(leaves(default))) is None


def _check(key: str, value: object, default: Mapping[str, object]) -> Problem | None:
    listed = next((name for name in ancestors(key) if name in AVAILABLE), None)
    allowed = AVAILABLE[listed] if listed is not None else ()
    if allowed is ANY or value in allowed:
        return None
    unset = next((name for name in ancestors(key) if name != key and name in default), None)
    if unset is not None:  # a section that is absent by default is refused as a whole
        return Problem(unset, f"{unset}: {ELSEWHERE.get(unset, 'not available yet')}")
    offer = f"; use {' or '.join(str(a) for a in allowed)}" if allowed else ""
    return Problem(key, f"{key}={_shown(value)}: not available yet{offer}")


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."

"""What of a recipe's `cache` section cannot hold for these items, and what it means for them, before anything runs."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from difftool.errors import PlanError, Problem
from difftool.planning.checkpoint import Checkpoint
from difftool.planning.plan import Choice, Item
from difftool.planning.prediction import anatomy_of
from difftool.planning.step_masks import FEWEST_STEPS, is_masked, step_mask
from difftool.planning.teacache import unpublished
from difftool.planning.tree import at, leaves
from difftool.recipe.schema import CacheSpec

TEACACHE = "teacache"  # the backend, and the section of its settings
SHARED = ("backend", "min_hit_rate")  # settings of every backend
BACKEND, SCM, STEPS = "cache.backend", "cache.scm", "sampling.num_inference_steps"


def check_cache(
    cache: Mapping[str, Any], checkpoint: Checkpoint, items: Sequence[Item], given: Collection[str]
) -> list[Problem]:
    """Every problem. `given` are the keys that the recipe gives: where `backend` is none by name, all else waits."""
    if cache["backend"] == "none":
        return [] if BACKEND in given else list(_check_unused(cache))
    found = [*_check_keys(cache), *_check_model(cache, checkpoint, items)]
    for item in items:
        found += _check_item(cache, checkpoint, item.sampling)
    return list(dict.fromkeys(found))


def check_cache_package(cache: Mapping[str, Any]) -> None:
    """Raises PlanError where the package of the cache is not installed."""
    if cache["backend"] == "dbcache" and find_spec("cache_dit") is None:
        raise PlanError(
            "cache.backend=dbcache needs cache-dit, which is not installed here", hint="pip install 'difftool[cache]'"
        )


def cache_choices(cache: Mapping[str, Any], items: Sequence[Item]) -> list[Choice]:
    """The steps that may be reused, for each number of steps that the items have."""
    if cache["backend"] == "none":
        return []
    if cache["backend"] == TEACACHE:
        reason = "first and last steps are computed, the rest where the first block's input has changed enough"
        return [Choice(key=BACKEND, value=TEACACHE, reason=reason)]
    if any(item.sampling.get("boundary_ratio") is not None for item in items):
        masked = "by a mask for each" if is_masked(cache["scm"]) else "by change alone"
        reason = "two transformers have a cache each, counted in their own steps"
        return [Choice(key=BACKEND, value=f"dbcache, {masked}", reason=reason)]
    return [_choice(cache, steps) for steps in sorted({item.sampling["num_inference_steps"] for item in items})]


def _choice(cache: Mapping[str, Any], steps: int) -> Choice:
    mask = step_mask(cache["scm"], steps, warmup=cache["max_warmup_steps"])
    if mask is None:
        few = f"; a mask (cache.scm) is for {FEWEST_STEPS} steps or more" if steps < FEWEST_STEPS else ""
        first = min(cache["max_warmup_steps"], steps)
        reason = f"{first} of {steps} steps are computed first, the rest where change asks for it{few}"
        return Choice(key=BACKEND, value="dbcache, by change alone", reason=reason)
    computed = mask.count("1")
    how = "always" if cache["scm"]["policy"] == "static" else "where change is small"
    share = f"{100 * computed / steps:.0f} %"
    reason = f"computes {computed} of {steps} steps ({share}), reuses the others {how}"
    return Choice(key=SCM, value=mask, reason=reason)


def _check_keys(cache: Mapping[str, Any]) -> Iterator[Problem]:
    """Settings that would do nothing beside the others."""
    scm, seer, backend = cache["scm"], cache["taylorseer"], cache["backend"]
    default = CacheSpec().model_dump(mode="json")
    for key in [key for key in cache if (key == TEACACHE) == (backend == "dbcache") and key not in SHARED]:
        for name, value in leaves({key: cache[key]}):
            if value != at(default, name):
                yield Problem(f"cache.{name}", f"cache.{name}: a setting that {backend} does not have; leave it out")
    if backend == TEACACHE:
        return
    if scm["compat"] != "none" and scm["preset"] == "none":
        yield Problem(f"{SCM}.compat", f"{SCM}.compat={scm['compat']}: it is how a preset is counted; set {SCM}.preset")
    if scm["policy"] != "dynamic" and not is_masked(scm):
        message = f"{SCM}.policy={scm['policy']}: there is no mask to obey; set {SCM}.preset or bins"
        yield Problem(f"{SCM}.policy", message)
    if seer["order"] != 1 and not seer["enabled"]:
        message = f"cache.taylorseer.order={seer['order']}: nothing is extrapolated; set cache.taylorseer.enabled"
        yield Problem("cache.taylorseer.order", message)


def _check_unused(cache: Mapping[str, Any]) -> Iterator[Problem]:
    """Settings of a cache that there is none of."""
    default = CacheSpec().model_dump(mode="json")
    for name, value in leaves(cache):
        if value != at(default, name):
            yield Problem(f"cache.{name}", f"cache.{name}: {BACKEND} is none; set dbcache or teacache")


def _check_model(cache: Mapping[str, Any], checkpoint: Checkpoint, items: Sequence[Item]) -> Iterator[Problem]:
    backend = cache["backend"]
    if checkpoint.model.backend == "diffusers":
        message = f"{BACKEND}={backend}: diffusers runs {checkpoint.model.pipeline_class} by itself; use none"
        yield Problem(BACKEND, message)
    elif backend == TEACACHE and (why := unpublished(cache, checkpoint.pipeline.teacache)):
        yield Problem("cache.teacache", why)
    computed, longest = cache["fn_compute_blocks"] + cache["bn_compute_blocks"], _longest_list(checkpoint, items)
    if backend == "dbcache" and longest is not None and computed >= longest:
        message = f"{BACKEND}={backend}: {computed} blocks of every list always run, and the longest has {longest}"
        yield Problem(BACKEND, f"{message}; lower cache.fn_compute_blocks or bn_compute_blocks")
    if backend == "dbcache" and "guidance_scale_2" not in checkpoint.sampling:
        for key in [key for key, value in cache["secondary"].items() if value is not None]:
            message = f"cache.secondary.{key}: {checkpoint.family.title} has one transformer; use cache.{key}"
            yield Problem(f"cache.secondary.{key}", message)


def _longest_list(checkpoint: Checkpoint, items: Sequence[Item]) -> int | None:
    """How many blocks the longest of the denoiser's lists has, where that is known."""
    anatomy = anatomy_of(checkpoint, items[0].sampling) if items else None
    if anatomy is None:
        return None
    counts = Counter[str]()
    for block in anatomy.blocks:
        counts[block.name] += block.count if block.dealt else 0
    return max(counts.values())


def _check_item(cache: Mapping[str, Any], checkpoint: Checkpoint, values: Mapping[str, Any]) -> Iterator[Problem]:
    scm, facts, steps = cache["scm"], checkpoint.family, values["num_inference_steps"]
    two = values.get("boundary_ratio") is not None
    if facts.third_branch and (values.get("extra") or {}).get(facts.third_branch):
        key = f"sampling.extra.{facts.third_branch}"
        yield Problem(key, f"{key}: its branch leaves blocks out, which a cache cannot follow; leave one of them out")
    if cache["backend"] == TEACACHE:
        return
    if is_masked(scm) and steps < FEWEST_STEPS:
        message = f"{SCM}: refused for {steps} steps, a mask is for {FEWEST_STEPS} or more; leave it out: dbcache stays"
        yield Problem(SCM, message)
    elif scm["compute_bins"] and two:
        message = f"{SCM}.compute_bins: two transformers have steps of their own; use {SCM}.preset"
        yield Problem(f"{SCM}.compute_bins", message)
    elif scm["compute_bins"] and (total := sum(scm["compute_bins"]) + sum(scm["cache_bins"])) != steps:
        message = f"{SCM}: the bins sum to {total}, and {STEPS} is {steps}; make them equal"
        yield Problem(f"{SCM}.compute_bins", message)
    if not two and cache["max_warmup_steps"] >= steps and not is_masked(scm) and cache["min_hit_rate"] > 0:
        message = f"cache.max_warmup_steps={cache['max_warmup_steps']} leaves none of {steps} steps to reuse"
        yield Problem("cache.max_warmup_steps", f"{message}; lower it, or set cache.min_hit_rate=0")

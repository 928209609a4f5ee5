"""Whether a cache did anything at all for one item."""

from collections.abc import Mapping
from typing import Any

from difftool.errors import PlanError
from difftool.report.reuse import CacheUse


def check_hits(use: CacheUse, spec: Mapping[str, Any]) -> None:
    """Raises PlanError for a sample with fewer reused steps than `cache.min_hit_rate`, with what to do about it."""
    steps, least = len(use.kinds), spec["min_hit_rate"]
    if use.reused >= least * steps:
        return
    why, way_out = _reason(use, spec, steps)
    raise PlanError(
        f"cache.backend={spec['backend']} reused {use.reused} of {steps} steps, less than the share of {least:g} that "
        f"cache.min_hit_rate asks for: {why}",
        hint=f"{way_out}; or leave the cache out, or accept it with cache.min_hit_rate=0",
    )


def _reason(use: CacheUse, spec: Mapping[str, Any], steps: int) -> tuple[str, str]:
    each = [changes for denoiser in use.denoisers.values() for changes in denoiser.changes.values()]
    seen = [change for changes in each for change in changes if change is not None]
    if spec["backend"] == "teacache":
        least = f", which changed by {min(seen):.3g} at least" if seen else ""
        why = f"the changes of the first block's input{least} added up to more than cache.teacache.threshold"
        return why, "raise the threshold, or use more steps"
    if not seen:
        why = "no step was compared with the one before"
        return why, f"lower cache.max_warmup_steps={spec['max_warmup_steps']}, or use more steps than {steps}"
    threshold = spec["residual_diff_threshold"]
    why = f"the smallest change from step to step was {min(seen):.3g}, and cache.residual_diff_threshold={threshold:g}"
    return why, "raise the threshold, or use more steps"

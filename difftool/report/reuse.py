"""What a cache of features did in a run: the steps it reused, of each sample and of all of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from difftool.report.perf import Part

StepKind = Literal["compute", "cached"]


class DenoiserUse(Part):
    """One denoiser's part of a sample. `steps` are its steps, of all the sample's; the rest is by block list: which of
    them it computed (1) and reused (0), and the change that was seen before (null: nobody looked). `mask` is which of
    them it was allowed to reuse; `outputs` how much what the blocks made changed, where that was measured.
    """

    steps: list[int]
    mask: str | None
    decisions: dict[str, str]
    changes: dict[str, list[float | None]]
    outputs: list[float | None] = []


class CacheUse(Part):
    """One sample on the rank that leads its replica. `blocks` are the block forwards that a run without a cache makes
    of the lists that it looks after, `blocks_run` those that ran. `flop_ideal` is how many times fewer FLOPs the
    denoiser needed; null where its FLOPs are not known.
    """

    item: int = 0
    repeat: int = 0
    kinds: list[StepKind]
    forwards: int
    blocks_run: dict[str, int]
    blocks: dict[str, int]
    denoisers: dict[str, DenoiserUse]
    flop_ideal: float | None = None

    @property
    def reused(self) -> int:
        """Steps in which at least one block did not run."""
        return self.kinds.count("cached")

    @property
    def computed_part(self) -> float | None:
        """Of the FLOPs that a run without a cache needs, as far as they are known."""
        return None if self.flop_ideal is None else 1 / self.flop_ideal


def with_shares(use: CacheUse, shares: Mapping[str, float] | None) -> CacheUse:
    """With `flop_ideal`, from the share of a forward's FLOPs that one block of each list has."""
    if shares is None:
        return use
    saved = sum((count - use.blocks_run.get(key, 0)) * shares[key] for key, count in use.blocks.items())
    return use.model_copy(update={"flop_ideal": use.forwards / (use.forwards - saved)})


def summed_up(uses: Sequence[CacheUse]) -> dict[str, Any]:
    """Of all samples, for `effective.cache`. The ideal is of their FLOPs together, where all are known."""
    steps, reused = sum(len(use.kinds) for use in uses), sum(use.reused for use in uses)
    needed = [use.forwards / use.flop_ideal for use in uses if use.flop_ideal is not None]
    ideal = sum(use.forwards for use in uses) / sum(needed) if uses and len(needed) == len(uses) else None
    return {
        "steps": steps,
        "reused_steps": reused,
        "hit_rate": reused / steps if steps else 0.0,
        "flop_ideal_speedup": ideal,
        "samples": [use.model_dump(mode="json", exclude={"kinds"}) for use in uses],
    }


def cache_line(effective: Mapping[str, Mapping[str, Any]]) -> str:
    """What to say of it at the end of a run; empty without a cache."""
    found = effective.get("cache", {})
    if not {"backend", "hit_rate", "reused_steps", "steps", "flop_ideal_speedup"} <= found.keys():
        return ""
    ideal = found["flop_ideal_speedup"]
    by_flops = f", {ideal:.2f}x by FLOPs at best" if ideal is not None else ""
    share = f"{100 * found['hit_rate']:.0f} %"
    return f"{found['backend']} reused {found['reused_steps']} of {found['steps']} steps ({share}){by_flops}"

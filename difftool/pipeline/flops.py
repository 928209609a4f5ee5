"""The FLOPs of one item's denoising, by what its family says of its cost: matrix products, as torch counts them.

It is the work of the model that was computed, on however many ranks, and once: what a cache left out is not in it, nor
is what ranks compute twice so as to wait less for each other. What the loop computes once for all steps counts in each.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from difftool.anatomy import Anatomy, published_cost
from difftool.components.loaded import Components
from difftool.pipeline.batch import Batch
from difftool.pipeline.config import PipelineConfig
from difftool.planning.communication import Asked, Forward, Known, forwards


def denoiser_calls(
    config: PipelineConfig, components: Components, batch: Batch, values: Mapping[str, Any], *, joined: bool
) -> tuple[Forward, ...]:
    """How the branches of a request that was made reached the denoiser. `values` are its sampling values; `joined`: two
    branches may share a forward. Nothing where the family says nothing of its cost, or a config lacks a number.
    """
    if config.facts.cost is None or batch.branches is None:
        return ()
    known = config.configs(components)
    configs = {**known, "index": {**known["index"], "_class_name": config.pipeline_class}}
    branches = {branch.name: Known(tuple(config.text_tokens(branch)), branch.active) for branch in batch.branches}
    pictures = [picture.image.size for picture in batch.image]
    asked = Asked(values, pictures, guided="negative" in branches, known=branches)
    try:
        return forwards(published_cost(config.facts.cost), configs, asked, joined=joined)
    except KeyError:
        return ()


def item_flops(calls: Sequence[Forward], *, part: float | None = 1.0) -> float | None:
    """Those of all steps, of which `part` was computed; None where either is not known."""
    if not calls or part is None:
        return None
    return part * sum(call.samples * call.anatomy.flops() * len(call.active) for call in calls)


def block_shares(anatomy: Anatomy) -> Mapping[str, float]:
    """The share of a forward's FLOPs that one block of each list has, the mean of unlike ones."""
    flops, counts = Counter[str](), Counter[str]()
    for block in anatomy.blocks:
        flops[block.name] += block.count * anatomy.block_flops(block)
        counts[block.name] += block.count
    total = flops.total()
    return {name: flops[name] / counts[name] / total for name in flops}

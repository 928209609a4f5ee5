"""What the ranks of the test pool run: a tiny checkpoint with a cache, made by one rank and by several, compared."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from families.running import assemble_case, batch_for, context_for
from families.shared_weights import loaded
from families.split import observed

from difftool.acceleration import cache
from difftool.parallel import sequence, shard
from difftool.parallel.mesh import Mesh
from difftool.parallel.world import World
from difftool.recipe.schema import CacheSpec

STEPS = 10
ALONE, CPU = Mesh({}, World()), torch.device("cpu")


def spec_of(**changes):
    """A recipe's `cache` section."""
    return CacheSpec.model_validate({"backend": "dbcache", **changes}).model_dump(mode="json")


def guided(assembled, **changes):
    """A request that runs a second branch where the family has one."""
    key = assembled.config.facts.second_branch
    own = {key: assembled.config.facts.second_branch_above + 1.5, "negative_prompt": [""]} if key else {}
    return batch_for(assembled, **{"num_inference_steps": STEPS, **own, **changes})


@contextmanager
def cached(assembled, spec, mesh=ALONE):
    """The caches of a case's denoisers, for as long as the context lasts."""
    config = assembled.config
    named = {name: getattr(assembled.components, name) for name in config.roles["denoising"]}
    present = {name: module for name, module in named.items() if module is not None}
    caches = cache.apply(present, spec, config.cache, mesh, config.sequence, config.pipeline.teacache)
    try:
        yield caches
    finally:
        caches.remove()


def made(assembled, batch, spec, mesh=ALONE, ctx=None):
    """The latents after the full schedule, and what the cache did."""
    with cached(assembled, spec, mesh) as caches:
        ctx = replace(ctx or context_for(assembled), mesh=mesh, cache=caches)
        return observed(assembled, batch, ctx)[0], caches.used()


def compare(world, *, case, folder, degrees, spec, changes=None, seeds=(7,), sharing=1):
    """One rank's latents and decisions beside those of a replica, whose seed is that of its place, as JSON."""
    assembled, mesh = assemble_case(case), Mesh(degrees, world, sharing=sharing)
    seed = seeds[mesh["dp"].index]
    batch = guided(assembled, seeds=[seed], prompt=[f"a red circle {seed}"], **(changes or {}))
    settings = spec_of(**spec)
    whole, alone = made(assembled, batch, settings)
    plain = observed(assembled, batch, context_for(assembled))[0]
    config = assembled.config
    makers = shard.parts(mesh, config.roles, config.sequence, config.tensor, encoders=1, device=CPU).makers
    split = loaded(assembled, folder, "float32", makers) if makers else assembled
    with ExitStack() as ends, cached(split, settings, mesh) as caches:
        for name in caches.caches if mesh.sequence.degree > 1 else ():
            transformer, stand_ins = getattr(split.components, name), caches.stand_ins[name]
            ends.callback(sequence.apply(transformer, config.sequence, mesh, stand_ins))
        ctx = replace(context_for(assembled), components=split.components, mesh=mesh, cache=caches)
        found, used = observed(split, batch, ctx)[0], caches.used()
    return {
        "difference": float((found - whole).abs().max()),
        "scale": float(whole.abs().max()),
        "lossy": float((whole - plain).abs().max()),
        "alone": decisions(alone),
        "split": decisions(used),
        "reused": used.reused,
        "sent": {name: dict(traffic.calls) for name, traffic in mesh.traffic().items()},
    }


def decisions(use):
    return {name: dict(each.decisions) for name, each in use.denoisers.items()}

"""Every transform of a pipeline, in the order they are applied in, each with what it takes from a run.

A transform is resolved twice: while no file is known, to refuse before anything is fetched, and with the folders of the
components, before weights load. Then it is applied.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from difftool.acceleration import attention, cache, compilation, loras, offload, precision, quantization, vae
from difftool.components.load import component_class
from difftool.components.loaded import Components
from difftool.errors import PlanError
from difftool.facts import TORCH_DTYPES, Applied, Refused
from difftool.parallel import shard
from difftool.parallel.mesh import Mesh
from difftool.parallel.plans import SequencePlan
from difftool.pipeline.config import PipelineConfig
from difftool.planning.budget import barred_by
from difftool.planning.compiling import PAYS_FROM, steps_of
from difftool.planning.plan import Plan
from difftool.platforms.base import Platform

Resolved = Mapping[str, Applied]  # by the name of the transform


@dataclass(frozen=True)
class Site:
    """Where transforms take place: the plan, the device, the ranks, and the modules of every stage.

    `config` is None for a pipeline that diffusers runs by itself. `root` is the checkpoint's folder, None while it is
    not known, and `elsewhere` has those of components that do not lie in it; `parts` are what this rank reads of those
    that it has not whole.
    """

    plan: Plan
    platform: Platform
    mesh: Mesh
    roles: Mapping[str, tuple[str, ...]]
    notify: Callable[..., None]
    config: PipelineConfig | None = None
    root: Path | None = None
    elsewhere: Mapping[str, Path] = field(default_factory=dict)
    parts: shard.Parts = field(default_factory=lambda: shard.Parts({}))

    def asked(self, key: str) -> dict[str, Any]:
        """A setting of every stage that has it."""
        return {stage: said[key] for stage, said in self.plan.stages.items() if key in said}

    @property
    def denoiser_folders(self) -> dict[str, Path] | None:
        """Those of the denoisers that are classes of diffusers; None while they are not known."""
        if self.root is None:
            return None
        own = self.config.component_classes if self.config is not None else {}
        return {name: self.elsewhere.get(name, self.root / name) for name in self.roles["denoising"] if name not in own}

    @property
    def encoder_ranks(self) -> int:
        """How many ranks encode a text together."""
        ranks: int = self.plan.stages["text_encoding"]["tp"]
        return ranks

    @property
    def sequence(self) -> SequencePlan | None:
        """How the denoiser's tokens are dealt, which names its blocks and their attention."""
        return self.config.sequence if self.config is not None else None

    @property
    def block_lists(self) -> tuple[str, ...]:
        """The denoiser's lists of blocks, as far as its family names them."""
        return self.sequence.blocks if self.sequence is not None else ()

    @property
    def layer_names(self) -> Mapping[str, tuple[str, ...]]:
        """What the denoiser's layers are called elsewhere."""
        return self.config.layer_names if self.config is not None else {}


class Made(NamedTuple):
    """What a transform did, for the dump, and what the run or a later transform needs of it."""

    applied: Applied | None
    product: Any = None


@dataclass(frozen=True)
class Work:
    """The components under transformation: what was resolved, and what is made so far, by name of the transform."""

    site: Site
    components: Components
    resolved: Resolved
    made: dict[str, Made]


@dataclass(frozen=True)
class Transform:
    """`why` it has its place. `resolve` is given what those before it were resolved to; None: there is nothing to do.
    Without `apply` it takes effect while weights are read.
    """

    name: str
    why: str
    resolve: Callable[[Site, Resolved], Applied | Refused | None]
    apply: Callable[[Work], Made] | None = None


def resolve_all(site: Site) -> dict[str, Applied]:
    """What every transform will do. Raises PlanError for the first one that is refused."""
    found: dict[str, Applied] = {}
    for transform in ORDER:
        outcome = transform.resolve(site, found)
        if isinstance(outcome, Refused):
            raise PlanError(outcome.reason)
        if outcome is not None:
            found[transform.name] = outcome
    return found


def apply_all(site: Site, components: Components, resolved: Resolved) -> dict[str, Made]:
    """What every transform did, by name; nothing of those that had nothing to do."""
    work = Work(site, components, resolved, {})
    for transform in ORDER:
        if transform.name in resolved:
            as_read = Made(resolved[transform.name])
            work.made[transform.name] = transform.apply(work) if transform.apply is not None else as_read
    return work.made


def dtypes_of(resolved: Resolved) -> dict[str, torch.dtype]:
    """Of every module, by name."""
    return {name: getattr(torch, TORCH_DTYPES[str(value)]) for name, value in resolved["precision"].detail.items()}


def _precision(site: Site, resolved: Resolved) -> Applied | Refused:
    kept = site.config.facts.keep_fp32 if site.config is not None else {}
    return precision.resolve(site.asked("precision"), site.roles, site.platform, keep_fp32=kept)


def _loras(site: Site, resolved: Resolved) -> Applied:
    if (folders := site.denoiser_folders) is not None:
        loras.check(site.plan.loras, site.notify, folders, site.layer_names)
    return Applied()


def _merge_loras(work: Work) -> Made:
    site = work.site
    opened = loras.open_set(work.components, site.roles, site.layer_names, site.parts.made)
    return Made(loras.apply(opened, site.plan.loras, site.notify).get("lora"), opened)


def _quantization(site: Site, resolved: Resolved) -> Applied | Refused:
    return quantization.resolve(site.asked("quantization"), site.roles, dtypes_of(resolved), site.platform.device)


def _quantize(work: Work) -> Made:
    given = {"dtypes": dtypes_of(work.resolved), "lists": work.site.block_lists}
    done = quantization.apply(work.components, work.site.roles, work.resolved["quantization"], **given)
    return Made(done.get("quantization"))


def _attention(site: Site, resolved: Resolved) -> Applied | Refused:
    facts, degrees = (site.config.facts, site.mesh.degrees) if site.config is not None else (None, {})
    told = (resolved["precision"], degrees, site.denoiser_folders)
    return attention.resolve(site.asked("attention"), site.roles, facts, site.platform, *told)


def _attend(work: Work) -> Made:
    site = work.site
    grid = site.config.video_grid if site.config is not None else None
    asked, chosen = site.asked("attention"), work.resolved["attention"]
    return Made(*attention.apply(work.components, site.roles, asked, chosen, site.sequence, grid))


def _vae(site: Site, resolved: Resolved) -> Applied | Refused | None:
    if site.root is None:
        return None
    asked, ranks = site.plan.stages["decoding"], site.mesh.replica.degree
    kind = _class(site, site.roles["decoding"][0], site.root) if site.roles["decoding"] else object
    return vae.resolve(asked["tiling"], slicing=asked["slicing"], kind=kind, parallel=asked["parallel"], ranks=ranks)


def _class(site: Site, name: str, root: Path) -> type:
    own = site.config.component_classes.get(name) if site.config is not None else None
    return own or component_class(root, name)


def _decode(work: Work) -> Made:
    for name in work.site.roles["decoding"][:1]:
        vae.apply(getattr(work.components, name), work.resolved["vae"], work.site.mesh.replica)
    return Made(work.resolved["vae"])


def _cache(site: Site, resolved: Resolved) -> Applied | Refused | None:
    plan, published = (site.config.cache, site.config.pipeline.teacache) if site.config is not None else (None, None)
    return cache.resolve(site.plan.recipe["cache"], plan, site.mesh, published)


def _reuse(work: Work) -> Made:
    site = work.site
    assert site.config is not None and site.config.cache is not None
    named = {name: getattr(work.components, name) for name in site.roles["denoising"]}
    denoisers = {name: module for name, module in named.items() if module is not None}
    given = (site.plan.recipe["cache"], site.config.cache, site.mesh, site.sequence, site.config.pipeline.teacache)
    made = cache.apply(denoisers, *given)
    return Made(work.resolved["cache"], made)


def _shard(site: Site, resolved: Resolved) -> Applied | Refused | None:
    if site.config is None:
        return None
    return shard.resolve(site.mesh, site.sequence, site.config.tensor, encoders=site.encoder_ranks)


def _deal(work: Work) -> Made:
    site = work.site
    stand_ins = work.made["cache"].product.stand_ins if "cache" in work.made else {}
    shard.apply(work.components, site.roles["denoising"], site.mesh, site.sequence, stand_ins)
    return Made(work.resolved["shard"])


def _compilation(site: Site, resolved: Resolved) -> Applied | Refused:
    # of pipelines that diffusers runs, nobody tried whether it pays
    pays = site.config is not None and steps_of(site.plan.items, site.plan.repeats) >= PAYS_FROM
    return compilation.resolve(site.asked("compile"), site.platform, pays=pays)


def _compile(work: Work) -> Made:
    site = work.site
    alone = site.config is not None and "cache" not in work.made and site.mesh.world.size == 1
    given = {"lists": site.block_lists, "alone": alone}
    return Made(compilation.apply(work.components, site.roles, work.resolved["compile"], **given).get("compile"))


def _offload(site: Site, resolved: Resolved) -> Applied | Refused | None:
    plan, precisions = site.plan, resolved["precision"].detail
    return offload.resolve(site.asked("offload"), plan.budget, precisions, barred=barred_by(plan.stages))


def _send_away(work: Work) -> Made:
    site = work.site
    given = {"lists": site.block_lists, "pinned": site.plan.pin_memory}
    return Made(*offload.apply(work.components, site.roles, work.resolved["offload"], site.platform, **given))


ORDER = (
    Transform("precision", "first: it decides the dtype weights are read in", _precision),
    Transform(
        "lora", "merged into full weights, before anything wraps or splits the layers it names", _loras, _merge_loras
    ),
    Transform(
        "quantization",
        "on weights of their final dtype and values; a LoRA has no place in quantized ones",
        _quantization,
        _quantize,
    ),
    Transform("attention", "before the cache counts and the shards split what the processors see", _attention, _attend),
    Transform("vae", "how it decodes: its own switches, independent of the rest", _vae, _decode),
    Transform(
        "cache", "before sharding, or its block wrappers see shards where they expect whole sequences", _cache, _reuse
    ),
    Transform("shard", "before compile, which leaves out what ranks say to each other", _shard, _deal),
    Transform("compile", "after all that changes a forward", _compilation, _compile),
    Transform("offload", "last: weights are as they will stay, and calls are seen from outside", _offload, _send_away),
)

"""From a plan to a runnable pipeline: composed, resolved, loaded, transformed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from difftool.acceleration import attention, loras, offload
from difftool.acceleration.attention.video import Video
from difftool.acceleration.cache import StepCache
from difftool.acceleration.residence import NOWHERE, Residence
from difftool.components.load import component_class, load_components
from difftool.components.loaded import Components
from difftool.components.locate import locate, locate_components, locate_sources
from difftool.components.lora import LoraSet
from difftool.components.replaced import Place
from difftool.components.schedulers import check_config
from difftool.components.sources import own_readers
from difftool.facts import Applied
from difftool.parallel import shard
from difftool.parallel.mesh import Mesh
from difftool.pipeline.batch import Batch
from difftool.pipeline.composed import ComposedPipeline
from difftool.pipeline.config import PipelineConfig
from difftool.pipeline.foreign import ForeignPipeline, load_pipeline, roles_of
from difftool.pipeline.prompt_embeds import PromptEmbeds, open_prompt_embeds
from difftool.pipeline.registry import load_config
from difftool.pipeline.stage import Context
from difftool.pipeline.transforms import Made, Site, apply_all, dtypes_of, resolve_all
from difftool.planning.plan import Plan
from difftool.platforms.base import Platform

ANY_COMPONENT = ("*",)


@dataclass(frozen=True)
class Assembled:
    """A pipeline ready to run, its loaded components, and what was applied to them (`effective` of the dump).

    `config` is None for a pipeline that diffusers runs by itself. `loras` are those of its weights.
    """

    config: PipelineConfig | None
    pipeline: Callable[[Batch, Context], Batch]
    components: Components
    effective: Mapping[str, Mapping[str, object]]
    loras: LoraSet
    videos: Mapping[str, Video] = field(default_factory=dict)
    cache: StepCache | None = None
    prompt_embeds: PromptEmbeds | None = None
    residence: Residence = NOWHERE

    def told(self) -> Mapping[str, Mapping[str, object]]:
        """`effective`, with what was left out of videos since it was told last, and what weights were moved so far."""
        videos = {name: {"video": video.told()} for name, video in self.videos.items()}
        moved = {name: {"moved": moved} for name, moved in self.residence.moved().items()}
        counted = {"attention": videos, "offload": moved}
        return {**self.effective, **{key: self._with(key, more) for key, more in counted.items() if more}}

    def _with(self, transform: str, more: Mapping[str, Mapping[str, object]]) -> Mapping[str, object]:
        """What was applied by a transform, with more of some components."""
        told = dict(self.effective[transform])
        for component, counts in more.items():
            found = told[component]
            assert isinstance(found, Mapping), found
            told[component] = {**found, **counts}
        return told

    @property
    def joined(self) -> bool:
        """Whether its kernels let branches of unlike text share a forward."""
        return self.config is None or attention.joins(self.effective["attention"], self.config.facts)

    def weight_bytes(self) -> int:
        """Of all parameters of this rank, wherever they wait."""
        return self.components.weight_bytes() + self.residence.waiting_bytes()

    def with_loras(self, plan: Plan, notify: Callable[..., None]) -> "Assembled":
        """The same pipeline with this plan's LoRAs in its weights, in place of those of the plan before."""
        others = {name: outcome for name, outcome in self.effective.items() if name != "lora"}
        applied = loras.apply(self.loras, plan.loras, notify)
        return replace(self, effective={**others, **_effective(applied)})


def assemble(plan: Plan, platform: Platform, notify: Callable[..., None], mesh: Mesh) -> Assembled:
    """Composes, resolves every transform, loads, applies. Raises before weights load where that is knowable."""
    if plan.model.backend == "diffusers":
        return _foreign(plan, platform, notify, mesh)
    return _native(plan, platform, notify, mesh)


def _native(plan: Plan, platform: Platform, notify: Callable[..., None], mesh: Mesh) -> Assembled:
    """The stages of a family over its checkpoint's components."""
    model, device = plan.model, platform.device
    config = load_config(model.family, model.pipeline_class, code=model.code, digest=model.code_sha256)
    names, optional = config.pipeline.components, config.pipeline.optional
    pipeline = ComposedPipeline(config.stages(), available=(*names, *optional))
    site = Site(plan, platform, mesh, config.roles, notify, config)
    resolve_all(site)
    beat = partial(notify, "heartbeat")
    folder = locate(model, (*names, *optional), beat, sources=config.weight_sources)
    _check_schedules(plan, folder)
    replaced = locate_components(model, folder, beat)
    sources = locate_sources(config.weight_sources, beat)
    dealt = {"encoders": site.encoder_ranks, "device": device}
    parts = shard.parts(mesh, config.roles, config.sequence, config.tensor, **dealt)
    site = replace(site, root=folder, elsewhere={name: at.folder for name, at in replaced.items()}, parts=parts)
    resolved = resolve_all(site)
    dtypes = dtypes_of(resolved)
    leaving = offload.leaving(resolved.get("offload"), config.roles)
    host = torch.device("cpu") if leaving else device
    components = load_components(
        names,
        config.holder,
        folder,
        optional=optional,
        tokenizers=config.pipeline.tokenizers,
        dtypes=dtypes,
        device=device,
        loaded=lambda **values: notify("component_loaded", **values),
        own=own_readers(config.component_classes, sources, folder, dtypes=dtypes, device=host),
        devices=dict.fromkeys(leaving, host),
        replaced=replaced,
        shares=parts.makers,
        later=config.roles["text_encoding"] if plan.puts_encoders_off else (),
    )
    made = apply_all(site, components, resolved)
    if replaced:
        made["components"] = Made(Applied({name: model.components[name].shown for name in replaced}))
    encoding = [replaced.get(name, Place(folder / name)) for name in components.modules if name not in _others(config)]
    files = [place.file or place.folder for place in encoding]
    kept = open_prompt_embeds(plan, files, resolved["precision"].detail, platform)
    return _assembled(config, pipeline, components, made, kept)


def _foreign(plan: Plan, platform: Platform, notify: Callable[..., None], mesh: Mesh) -> Assembled:
    """A pipeline of diffusers as it is, with what can be set on its parts."""
    folder = locate(plan.model, ANY_COMPONENT, lambda: notify("heartbeat"))
    _check_schedules(plan, folder)
    roles = roles_of(folder)
    site = Site(plan, platform, mesh, roles, notify, root=folder)
    resolved = resolve_all(site)
    pipe = load_pipeline(
        folder,
        plan.model.pipeline_class,
        dtypes=dtypes_of(resolved),
        device=platform.device,
        trust_remote_code=plan.model.trust_remote_code,
    )
    pipeline = ForeignPipeline(pipe, roles, plan.model.diffusers_kwargs)
    return _assembled(None, pipeline, pipeline.components, apply_all(site, pipeline.components, resolved))


def _check_schedules(plan: Plan, folder: Path) -> None:
    """Raises RecipeError for a setting that the checkpoint's scheduler has not."""
    for schedule in (item.sampling.get("scheduler") or {} for item in plan.items):
        if schedule.get("config"):
            check_config(component_class(folder, "scheduler"), schedule)


def _assembled(
    config: PipelineConfig | None,
    pipeline: Callable[[Batch, Context], Batch],
    components: Components,
    made: Mapping[str, Made],
    kept: PromptEmbeds | None = None,
) -> Assembled:
    effective = _effective({name: each.applied for name, each in made.items() if each.applied is not None})
    loras, videos = made["lora"].product, made["attention"].product
    cache = made["cache"].product if "cache" in made else None
    residence = made["offload"].product if "offload" in made else NOWHERE
    loras.change_in(residence.parts)
    return Assembled(config, pipeline, components, effective, loras, videos, cache, kept, residence)


def _others(config: PipelineConfig) -> set[str]:
    """The modules of all stages but the encoding of texts."""
    return {name for role, names in config.roles.items() if role != "text_encoding" for name in names}


def _effective(applied: Mapping[str, Applied]) -> dict[str, dict[str, object]]:
    return {name: {"status": "applied", **outcome.detail} for name, outcome in applied.items()}

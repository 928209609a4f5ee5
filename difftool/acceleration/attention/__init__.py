"""The attention of the denoisers: which backend computes which part of it, and how it comes into their processors.

A kernel is bound to one attention module at a time, so nothing of a run is left for the next. Modules outside of the
blocks, which refine a text before it comes to them, keep torch's own: they take masks, and are a small part.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from difftool.acceleration.attention import encoders
from difftool.acceleration.attention.kernels import KERNELS
from difftool.acceleration.attention.sparse import tile_kernels
from difftool.acceleration.attention.trial import probe, probe_kernel
from difftool.acceleration.attention.video import ReadGrid, Video
from difftool.attention import (
    ALL,
    ALWAYS,
    BACKENDS,
    CROSS,
    FLEX,
    SELF,
    SPECIALISED,
    Needs,
    Site,
    candidates,
    chosen,
    explained,
    faults,
    kernel_explained,
    kernel_faults,
    named,
)
from difftool.components.loaded import Components
from difftool.errors import PlanError
from difftool.facts import SEQUENCE, TORCH_DTYPES, Applied, FamilyFacts, Refused
from difftool.parallel.plans import SequencePlan
from difftool.parallel.seam import attend_through
from difftool.platforms.base import Platform

KEY, CONFIG = "stages.denoising.attention", "config.json"
OWN = "own"  # of a denoiser that computes attention without a processor
Trial = Callable[[str, Site, Needs], str]  # why a backend fails there; "" where it works


class Picked(NamedTuple):
    """What leaves out parts of a video, and the kernel that computes it."""

    name: str
    kernel: str


def resolve(
    asked: Mapping[str, Any],
    roles: Mapping[str, Sequence[str]],
    facts: FamilyFacts | None,
    platform: Platform,
    precisions: Applied,
    degrees: Mapping[str, int],
    folders: Mapping[str, Path] | None = None,
) -> Applied | Refused:
    """The backend of every role of every denoiser. `asked` are the settings by stage, `folders` those of the denoisers'
    configs: while they are not known, no more is refused than what no file decides. A family without facts is not asked
    about roles. A kernel that is not torch's own is tried out.
    """
    sites = {name: site_of(platform, str(precision)) for name, precision in precisions.detail.items()}
    refused = encoders.refusal(asked["text_encoding"], {name: sites[name] for name in roles["text_encoding"]})
    if refused is not None:
        return refused
    needs = {
        name: {ALL: Needs()} if facts is None else _needs(facts, _config(folders, name), degrees)
        for name in roles["denoising"]
        if facts is None or _present(folders, name)
    }
    if folders is None:
        return choose(asked["denoising"], needs, sites)
    found = choose(asked["denoising"], needs, sites, _trial(platform))
    return found if isinstance(found, Refused) else _with_kernels(found, asked["denoising"], needs, platform, sites)


def site_of(platform: Platform, dtype: str) -> Site:
    """Where a component of this precision computes."""
    name = "rocm" if platform.name == "cuda" and torch.version.hip else platform.name
    return Site(name, dtype, platform.capability())


def _present(folders: Mapping[str, Path] | None, name: str) -> bool:
    """Whether a checkpoint has this denoiser, as far as that is known."""
    return folders is None or name not in folders or (folders[name] / CONFIG).is_file()


def _config(folders: Mapping[str, Path] | None, name: str) -> dict[str, Any]:
    known = folders is not None and name in folders
    return json.loads((folders[name] / CONFIG).read_text(encoding="utf-8")) if folders and known else {}


def _needs(facts: FamilyFacts, config: Mapping[str, Any], degrees: Mapping[str, int]) -> dict[str, Needs]:
    head = facts.head_width({"transformer": config})
    split = any(degrees.get(axis, 1) > 1 for axis in (*SEQUENCE, "tp"))
    return {
        role: Needs(
            head,
            masked=facts.masked.get(role) == "always",
            ring=degrees.get("ring", 1) > 1 and role == SELF,
            split=split,
            video=facts.video_tokens and role == SELF,
        )
        for role in facts.attention
    }


def _trial(platform: Platform) -> Trial:
    """Tries a kernel out with a small forward, once for each width and precision. torch's own is not tried."""

    @cache
    def tried(name: str, dtype: str, head: int) -> str:
        return probe(name, platform.device, getattr(torch, TORCH_DTYPES[dtype]), head)

    return lambda name, site, needs: "" if name == ALWAYS else tried(name, site.dtype, needs.head or 64)


def _with_kernels(
    found: Applied,
    asked: Any,
    needs: Mapping[str, Mapping[str, Needs]],
    platform: Platform,
    sites: Mapping[str, Site],
) -> Applied | Refused:
    """The same, with the kernel of what leaves out parts of a video: the one that is asked for, or else the specialised
    one where a small forward of it makes what FlexAttention makes.
    """
    detail: dict[str, dict[str, object]] = {}
    for component, roles in found.detail.items():
        for role, name in roles.items():
            detail.setdefault(component, {})[role] = name
            if not BACKENDS[name].tiles:
                continue
            wanted, site = chosen(asked, component, role).options.get("kernel", "auto"), sites[component]
            special, head = SPECIALISED[name][0], needs[component][role].head
            fault = "" if wanted == FLEX else kernel_fault(name, head, platform, site)
            if fault and wanted == special:
                return _no_kernel(name, component, fault)
            detail[component][role] = Picked(name, FLEX if fault or wanted == FLEX else special)
    return Applied(detail)


def _no_kernel(name: str, component: str, why: str) -> Refused:
    return Refused(f"{KEY}.kernel={SPECIALISED[name][0]}, for {name} of {component}: {why}; use {FLEX}")


def kernel_fault(name: str, head: int | None, platform: Platform, site: Site) -> str:
    """Why the specialised kernel of a backend cannot be used; "" where it can."""
    if found := kernel_faults(name, site, head):
        return kernel_explained(name, found)
    fault = probe_kernel(name, platform.device, getattr(torch, TORCH_DTYPES[site.dtype]), head or 64)
    return f"kernel {SPECIALISED[name][0]} was tried out here and fails: {fault}" if fault else ""


def joins(told: Mapping[str, Any], facts: FamilyFacts) -> bool:
    """Whether branches of unlike text can share a forward, as far as the kernels that `apply` tells of decide."""
    roles = [role for each in told.values() if isinstance(each, Mapping) for role in each.items()]
    masked = [name for role, name in roles if facts.masked.get(role) == "joined"]
    return all(name == OWN or BACKENDS[str(name)].masks for name in masked)


def choose(
    setting: Any, needs: Mapping[str, Mapping[str, Needs]], sites: Mapping[str, Site], trial: Trial = lambda *_: ""
) -> Applied | Refused:
    """The backend of every role of every component: `needs` has the roles that a component's attention plays, `sites`
    where it computes. Refused where the one that is asked for cannot be used, or fails a `trial`; one that `auto` would
    take and that fails is passed over.
    """
    if stray := [f"{KEY}.{key}" for key in named(setting) if key and not _known(key, needs)]:
        return Refused(f"{stray[0]}: there is no such attention to set in {', '.join(needs) or 'this model'}")
    found: dict[str, dict[str, object]] = {}
    for component, roles in needs.items():
        for role, need in roles.items():
            said, site = chosen(setting, component, role), sites[component]
            usable, why = _first(said.name, site, need, trial)
            if usable is None:
                kind = "" if role == ALL else f"{role}-attention of "
                return Refused(f"{KEY}={said.name}, for {kind}{component}: {why}")
            by_name = said.options.get("kernel", "auto") not in ("auto", FLEX)
            if by_name and (wrong := kernel_faults(usable, site, need.head)):
                return _no_kernel(usable, component, kernel_explained(usable, wrong))
            found.setdefault(component, {})[role] = usable
    return Applied(found)


def _known(key: str, needs: Mapping[str, Mapping[str, Needs]]) -> bool:
    """Whether a key of the setting names attention that is there."""
    parts = key.split(".")
    component = parts[1] if parts[0] == "components" else None
    role = parts[-1] if parts[-1] in (SELF, CROSS) else None
    of = [needs.get(component, {})] if component is not None else list(needs.values())
    return any(role in roles if role else roles for roles in of)


def _first(name: str, site: Site, needs: Needs, trial: Trial) -> tuple[str | None, str]:
    """The first backend of a name that can be used, else why none of them can and what to install."""
    wrong: dict[str, list[str]] = {}
    for each in candidates(name, site.platform):
        found = faults(each, site, needs)
        if not found and (fault := trial(each, site, needs)):
            found = [f"was tried out here and fails: {fault}"]
        if not found:
            return each, ""
        wrong[each] = found
    return None, ". ".join(explained(each, found) for each, found in wrong.items())


def apply(
    components: Components,
    roles: Mapping[str, Sequence[str]],
    asked: Mapping[str, Any],
    applied: Applied,
    sequence: SequencePlan | None,
    grid: ReadGrid | None = None,
) -> tuple[Applied, dict[str, Video]]:
    """Binds the kernels, whatever DIFFUSERS_ATTN_BACKEND says, and tells what every part has; of the denoisers that
    leave out parts of a video, what their kernels share. `grid` reads that of a denoiser's tokens from its arguments.
    """
    found: dict[str, object] = {}
    videos: dict[str, Video] = {}
    for component, named_here in applied.detail.items():
        model, by_name = getattr(components, component), dict(named_here)
        modules = {ALL: attention_modules(model)} if ALL in by_name else by_role(model, sequence)
        for role, bound in modules.items():
            picked = by_name.get(role, ALWAYS)
            if isinstance(picked, Picked):
                assert grid is not None, component
                videos[component], options = Video(), chosen(asked["denoising"], component, role).options
                videos[component].follow(model, grid)
                heads = [module.heads for module in bound]
                own = tile_kernels(picked.name, options, videos[component], heads, picked.kernel)
                by_name[role] = {"name": picked.name, **options, "kernel": picked.kernel}
            else:
                own = [KERNELS[picked]()] * len(bound)
            for module, kernel in zip(bound, own, strict=True):
                _bind(module, kernel, needed=picked != ALWAYS)
        for role in (role for role in by_name if not modules.get(role)):
            by_name[role] = _own(model, chosen(asked["denoising"], component, role).name)
        found[component] = by_name
    encoding = encoders.apply(components, roles["text_encoding"], asked["text_encoding"])
    return Applied({**found, **encoding}), videos


def _own(model: nn.Module, name: str) -> str:
    """What a denoiser has whose attention no processor computes. Raises PlanError where something else is asked for."""
    if name not in ("auto", ALWAYS):
        kind = type(model).__name__
        raise PlanError(f"{KEY}={name}: {kind} computes its attention itself, without a processor; use auto")
    return OWN


def _bind(module: nn.Module, kernel: Any, *, needed: bool) -> None:
    try:
        module.processor = attend_through(module.processor, kernel)
    except PlanError:
        if needed:  # some old classes know only torch's own
            raise


def by_role(model: nn.Module, plan: SequencePlan | None) -> dict[str, list[nn.Module]]:
    """The attention modules of a denoiser: those of its blocks that see the tokens of all ranks are self-attention, the
    others of its blocks cross-attention; "" are those outside. Without a plan all of them are self-attention.
    """
    if plan is None:
        return {SELF: list(attention_modules(model)), CROSS: []}
    found: dict[str, list[nn.Module]] = {SELF: [], CROSS: []}
    for block in (block for name in plan.blocks for block in model.get_submodule(name)):
        for module in attention_modules(block):
            own = any(module is getattr(block, name, None) for name in plan.attention)
            found[SELF if own else CROSS].append(module)
    inside = {id(module) for modules in found.values() for module in modules}
    return {**found, "": [module for module in attention_modules(model) if id(module) not in inside]}


def attention_modules(model: nn.Module) -> Sequence[nn.Module]:
    """Those whose attention a processor computes."""
    return [module for module in model.modules() if callable(getattr(module, "processor", None))]

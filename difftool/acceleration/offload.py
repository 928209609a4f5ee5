"""Weights of a stage that are away while it does not run: where each module of a role waits, and what brings it back.

Nothing is computed otherwise: what comes back is what went, bit for bit.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from difftool.acceleration.blocks import block_chains
from difftool.acceleration.residence import Home, Parcel, Residence, Stream, tensors_of
from difftool.acceleration.waiting import Store, open_store
from difftool.components.loaded import Components
from difftool.errors import PlanError
from difftool.facts import ELEMENT, Applied, Refused
from difftool.planning.budget import Barred, BudgetPlan, choose, fixed, shortfall
from difftool.platforms.base import Platform


def resolve(
    spec: Mapping[str, str | Mapping[str, Any]],
    budget: BudgetPlan | None,
    precisions: Mapping[str, object],
    *,
    barred: Barred,
) -> Applied | Refused | None:
    """`spec` by stage role -> Applied with the mode of every role whose weights are ever away; None where none are.

    `auto` is none or, with a `budget`, the first of the ladder that keeps within it, at the `precisions` of components.
    What a role is `barred` from is refused.
    """
    asked = fixed(spec)
    if budget is not None:
        elements = {name: ELEMENT[str(value)] for name, value in precisions.items()}
        chosen = choose(budget, asked, elements, barred=barred)
        if chosen is None:
            return Refused(shortfall(budget, asked, barred=barred))
        asked = chosen
    away = {role: mode for role, mode in asked.items() if mode["name"] not in ("auto", "none")}
    for role, mode in away.items():
        if why := barred.get(role, {}).get(mode["name"]):
            return Refused(f"stages.{role}.offload={mode['name']} does not go with {why}; use one of them")
    return Applied(away) if away else None


def leaving(applied: Applied | None, roles: Mapping[str, Sequence[str]]) -> set[str]:
    """The components that are away at times."""
    return {name for role in (applied.detail if applied is not None else ()) for name in roles.get(role, ())}


def apply(
    components: Components,
    roles: Mapping[str, Sequence[str]],
    applied: Applied,
    platform: Platform,
    *,
    lists: Sequence[str] = (),
    pinned: bool,
) -> tuple[Applied, Residence]:
    """Sends the modules of these roles away, last of all transforms: their tensors are as they will stay. `lists` are
    the denoisers' lists of blocks; `pinned`: they wait in page-locked memory, if in the host's.

    Raises PlanError for a module without blocks to stream.
    """
    store = open_store(platform, pinned=pinned)
    homes: dict[str, Home | Stream] = {}
    done: dict[str, object] = {}
    away = leaving(applied, roles)
    seen = _staying(components, away)
    _keep(_shared(components, away), seen, platform)
    for role, mode in applied.detail.items():
        assert isinstance(mode, Mapping), mode
        for name in roles.get(role, ()):
            module = getattr(components, name, None)
            if not isinstance(module, nn.Module):
                continue
            blocks, kept = _blocks(module, lists if role == "denoising" else ()), dict[str, object]()
            _keep(module.buffers(), seen, platform)  # small tables, which are read beside the module's own calls
            if mode["name"] == "layerwise":
                homes[name], kept = _stream(module, blocks, mode, seen, store, platform, f"stages.{role}.offload")
            else:
                parcels = _parcels([*blocks, module], seen, store, platform)
                # what decodes is not called but asked to, so that no call of it brings it
                homes[name] = Home(module, parcels, alone=mode["name"] == "module" and role != "decoding")
            size = sum(parcel.size for parcel in homes[name].parcels)
            done[name] = {"mode": mode["name"], "waits": store.name, "bytes": size, **kept}
    return Applied(done), Residence(homes)


def streamed(blocks: int, resident: int) -> list[int]:
    """Which of so many blocks come and go, where so many stay: those that stay are spread evenly between the others, so
    that each of these has time to come.
    """
    moving = max(0, blocks - resident)
    return [i for i in range(blocks) if (i + 1) * moving // blocks > i * moving // blocks]


def _stream(
    module: nn.Module,
    blocks: Sequence[nn.Module],
    mode: Mapping[str, Any],
    seen: set[int],
    store: Store,
    platform: Platform,
    key: str,
) -> tuple[Stream, dict[str, object]]:
    """A module whose blocks come one by one; what is outside of them, and the blocks that stay, go to the device."""
    if not blocks:
        raise PlanError(f"{key}=layerwise: {type(module).__name__} repeats no blocks", hint=f"use {key}=after_use")
    resident, ahead = mode.get("resident_blocks") or 0, mode.get("prefetch")
    moving = streamed(len(blocks), resident)
    if not moving:
        message = f"{key}: resident_blocks={resident} leaves none of {len(blocks)} blocks to stream"
        raise PlanError(message, hint=f"use {key}=none, or fewer")
    parcels = _parcels([blocks[i] for i in moving], seen, store, platform)
    _keep(tensors_of(module, seen), seen, platform)
    ahead = 1 if ahead is None else ahead
    pairs = [(blocks[i], parcel) for i, parcel in zip(moving, parcels, strict=True)]
    return Stream(pairs, ahead=ahead), {"blocks": len(moving), "of": len(blocks), "prefetch": ahead}


def _parcels(modules: Iterable[nn.Module], seen: set[int], store: Store, platform: Platform) -> list[Parcel]:
    """One for each module, of what none before it has."""
    return [Parcel(tensors_of(module, seen), store, platform.device) for module in modules]


def _keep(tensors: Iterable[Tensor], seen: set[int], platform: Platform) -> None:
    """On the device, for good."""
    for tensor in tensors:
        tensor.data = tensor.data.to(platform.device)
        seen.add(id(tensor))


def _blocks(module: nn.Module, lists: Sequence[str]) -> list[nn.Module]:
    return [block for chain in block_chains(module, lists) for block in chain.values()]


def _shared(components: Components, away: set[str]) -> list[Tensor]:
    """Tensors that several of these modules have: one of them may run while another is away."""
    modules = [module for name in away if isinstance(module := components.modules.get(name), nn.Module)]
    every = [tensor for module in modules for tensor in tensors_of(module, set())]
    count = Counter(map(id, every))
    return [tensor for tensor in every if count[id(tensor)] > 1]


def _staying(components: Components, away: set[str]) -> set[int]:
    """Tensors of modules that are always on the device, which others may have too."""
    seen: set[int] = set()
    for name, module in components.modules.items():
        if name not in away and isinstance(module, nn.Module):
            tensors_of(module, seen)
    return seen

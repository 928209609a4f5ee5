"""torch.compile of the modules of a stage: their blocks one by one, or the whole.

A block's forward is compiled, not its call: hooks around blocks, of sharded weights, caches and profiles, run as they
are. Blocks of one class share what is compiled. The first forward compiles, which the engine keeps out of samples.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch._dynamo.utils import calculate_time_spent

from difftool.acceleration.blocks import block_chains
from difftool.components.loaded import Components
from difftool.errors import PlanError
from difftool.facts import Applied, Refused
from difftool.parallel.seam import attends_through, unbound
from difftool.platforms.base import Platform

ROLES = ("text_encoding", "denoising", "decoding")
BACKEND = "inductor"
PART = {"decoding": "decoder"}  # of a module, what its stage calls


def resolve(spec: Mapping[str, str], platform: Platform, *, pays: bool) -> Applied | Refused:
    """`spec` by stage role -> Applied with "regional" or "full" for those to compile.

    `auto` is regional on CUDA where the run is long enough for it to pay, and a compiler is there. Without a compiler
    a request is refused with torch's own reason: a small function is tried.
    """
    auto = "regional" if pays and platform.name == "cuda" else "none"
    found = {role: auto if asked == "auto" else asked for role, asked in spec.items()}
    found = {role: mode for role, mode in found.items() if mode != "none"}
    if found and (fault := _fault(platform.device)):
        wanted = [role for role in found if spec[role] != "auto"]
        if wanted:
            key = f"stages.{wanted[0]}.compile"
            return Refused(f"{key}={found[wanted[0]]}: nothing can be compiled here: {fault}; use {key}=none")
        found = {}
    return Applied(found)


def apply(
    components: Components,
    roles: Mapping[str, Sequence[str]],
    applied: Applied,
    *,
    lists: Sequence[str] = (),
    alone: bool,
    backend: str | None = None,
) -> dict[str, Applied]:
    """Compiles the modules of these roles. `lists` are the denoisers' lists of blocks; `alone`: nothing inside a
    denoiser's blocks speaks to other ranks or leaves blocks out, so that each is one graph, or an error. `backend` is
    torch's name of what compiles graphs.

    What was done, by component, under the name of the transform; nothing where nothing was asked. Raises PlanError for
    a module without blocks, or whose stage calls no part that can be compiled.
    """
    if not applied.detail:
        return {}
    torch._dynamo.reset()  # of what this process compiled before
    done: dict[str, object] = {}
    for role, mode in applied.detail.items():
        for name in roles[role]:
            module = getattr(components, name, None)
            if not isinstance(module, nn.Module):
                continue
            _unbind(module)
            parts = _parts(module, str(mode), role, name, lists if role == "denoising" else ())
            whole = role == "denoising" and mode == "regional" and alone and not _is_left(module)
            for part in parts:
                part.forward = torch.compile(part.forward, fullgraph=whole, backend=backend or BACKEND)
            done[name] = {"mode": mode, "modules": len(parts), "fullgraph": whole}
    return {"compile": Applied(done)}


def _unbind(module: nn.Module) -> None:
    """Lets graphs have torch's own kernel in them; other kernels, and other ranks, are called from outside."""
    for inner in module.modules():
        if attends_through(getattr(inner, "processor", None)) is not None:
            inner.processor = unbound(inner.processor)


def _is_left(module: nn.Module) -> bool:
    """Whether an attention of it is computed by a function that no graph has in it."""
    return any(attends_through(getattr(inner, "processor", None)) is not None for inner in module.modules())


def spent_ms() -> float:
    """What this process has compiled for so far."""
    return calculate_time_spent()["total_wall_time"] * 1e3


def _parts(module: nn.Module, mode: str, role: str, name: str, lists: Sequence[str]) -> list[nn.Module]:
    """The modules whose forwards are compiled."""
    called = getattr(module, PART[role], None) if role in PART else module
    if not isinstance(called, nn.Module):
        key = f"stages.{role}.compile"
        raise PlanError(f"{key}={mode}: {name} is a {type(module).__name__}, without a {PART[role]}; use {key}=none")
    if mode == "full":
        return [called]
    blocks = [block for chain in block_chains(called, lists) for block in chain.values()]
    if not blocks:
        key = f"stages.{role}.compile"
        raise PlanError(f"{key}=regional: {name} repeats no blocks; use {key}=full")
    return blocks


def _fault(device: torch.device) -> str:
    """Why nothing can be compiled for the device; "" where it can."""
    try:
        torch.compile(_probe, backend=BACKEND)(torch.ones(8, device=device)).sum().item()
    except RuntimeError as error:  # as torch reports compilers that are missing or fail
        lines = [line for line in str(error).splitlines() if line and not line.endswith(" raised:")]
        return lines[0] if lines else type(error).__name__
    return ""


def _probe(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor * 2 + 1).sin()

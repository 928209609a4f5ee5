"""Whether compiling a denoiser pays, which a plan tells before it runs."""

from collections.abc import Iterable, Mapping
from typing import Any

from difftool.planning.plan import Choice, Item

# compiling the blocks takes tens of seconds, and a compiled step of the published models saves some hundredths of one
PAYS_FROM = 1000  # denoising steps


def steps_of(items: Iterable[Item], repeats: int) -> int:
    """Denoising steps that a run measures."""
    return repeats * sum(int(item.sampling["num_inference_steps"]) for item in items)


def compile_choice(resolved: Mapping[str, Any], items: Iterable[Item], *, native: bool) -> tuple[Choice, ...]:
    """What `auto` means for the denoiser. To compile, or not, a session would have to load its model anew: the steps of
    its first request decide for all.
    """
    if resolved["stages"]["denoising"]["compile"] != "auto":
        return ()
    steps, device = steps_of(items, resolved["perf"]["repeats"]), resolved["launch"]["device"]
    value, reason = "none", f"{steps} denoising steps: compiling pays on CUDA, from {PAYS_FROM} on"
    if native and steps >= PAYS_FROM and device in ("auto", "cuda"):
        value = "regional" if device == "cuda" else "cuda: regional, else none"
        reason = f"{steps} denoising steps pay for it"
    return (Choice(key="stages.denoising.compile", value=value, reason=f"{reason}; a session keeps its first choice"),)

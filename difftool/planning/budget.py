"""What `stages.*.offload: auto` comes to: the first rung of a ladder of placements that keeps within `memory.budget`.

No rung changes an output. Cheaper ones come first: text encoders run once for an item, the denoiser at every step.
"""

from collections.abc import Mapping
from typing import Any

from difftool.planning.plan import BudgetPlan, Holding
from difftool.planning.sizes import shown

Modes = Mapping[str, Mapping[str, Any]]  # by stage role: a name, and options
Barred = Mapping[str, Mapping[str, str]]  # by stage role: names it cannot have, each with the setting that excludes it

RUNGS: tuple[Mapping[str, str], ...] = (
    {},
    {"text_encoding": "after_use", "image_encoding": "after_use"},
    {"decoding": "after_use"},
    {"denoising": "module"},
    {"denoising": "layerwise"},
    {"text_encoding": "layerwise"},
)
AWAY = ("none", "after_use", "module", "layerwise")  # the shortest first


def fixed(spec: Mapping[str, str | Mapping[str, Any]]) -> Modes:
    """The offload of every stage as a mapping."""
    return {role: {"name": said} if isinstance(said, str) else dict(said) for role, said in spec.items()}


def barred_by(stages: Mapping[str, Mapping[str, Any]]) -> Barred:
    """What `auto` cannot come to beside a stage's other settings: what is asked for by name is refused there."""
    full = [role for role, stage in stages.items() if stage.get("compile") == "full"]
    found: dict[str, Mapping[str, str]] = {role: {"layerwise": f"stages.{role}.compile=full"} for role in full}
    if (ranks := stages["text_encoding"]["tp"]) > 1:
        found["text_encoding"] = dict.fromkeys(AWAY[1:], f"stages.text_encoding.tp={ranks}")
    return found


def ladder(asked: Modes, barred: Barred) -> list[Modes]:
    """Every placement in order; what is asked for by name stays as it is asked for, and nothing comes to what it is
    barred from.
    """
    auto = {role for role, mode in asked.items() if mode["name"] == "auto"}
    found, now = list[Modes](), {**asked, **{role: {"name": "none"} for role in auto}}
    for rung in RUNGS:
        free = {role: name for role, name in rung.items() if role in auto and name not in barred.get(role, ())}
        now = {**now, **{role: {"name": name} for role, name in free.items()}}
        if not found or now != found[-1]:
            found.append(now)
    return found


def choose(budget: BudgetPlan, asked: Modes, elements: Mapping[str, int], *, barred: Barred) -> Modes | None:
    """The first placement that fits where a number of each component takes so many bytes; None where none does.

    Where blocks are streamed, as many stay on the device as there is room for.
    """
    held = [_sized(each, elements) for each in budget.holdings]
    for modes in ladder(asked, barred):
        streams = all(each.blocks for each in held if _is_free(asked, modes, each.role))
        if streams and peak(held, modes, budget.activations) <= budget.bytes:
            return _roomy(held, asked, modes, budget)
    return None


def further(now: Modes, stage: str | None, *, barred: Barred) -> Mapping[str, str] | None:
    """What of the ladder to do next where memory ran out in `stage` (None: while weights loaded), as new names of the
    roles in `now`; None where nothing is left. A rung that helps another stage alone is gone along with the next.
    Of streamed blocks that stay, none stays.
    """
    steps = dict[str, str]()
    for rung in RUNGS:
        free = {role: name for role, name in rung.items() if role in now and name not in barred.get(role, ())}
        moved = {role: name for role, name in free.items() if _is_further(name, now[role])}
        steps |= moved
        # an image encoder goes along: most models have none
        if any(_helps(role, name, now[role], stage) for role, name in moved.items() if role != "image_encoding"):
            return steps
    return None


def _helps(role: str, name: str, now: Mapping[str, Any], stage: str | None) -> bool:
    """Whether a stage has more room for it: blocks are streamed in their own stage, and all else is away in others."""
    own = name == "layerwise" and not now.get("resident_blocks")
    return stage is None or (role == stage if own else role != stage or name == "layerwise")


def _is_further(name: str, now: Mapping[str, Any]) -> bool:
    known = "none" if now["name"] == "auto" else now["name"]
    return AWAY.index(name) > AWAY.index(known) or (name == known and bool(now.get("resident_blocks")))


def peak(held: list[Holding], modes: Modes, activations: int) -> int:
    """Bytes on the device in the stage that has most: its weights, those of others that stay, and the denoiser's
    activations. Those of encoders and decoders are not known.
    """
    found = []
    for role in {each.role for each in held}:
        here = [_running(each, modes[role]) for each in held if each.role == role]
        weights = max(here) if modes[role]["name"] == "module" else sum(here)
        others = sum(_staying(each, modes[each.role]) for each in held if each.role != role)
        found.append(weights + others + (activations if role == "denoising" else 0))
    return max(found, default=0)


def shortfall(budget: BudgetPlan, asked: Modes, *, barred: Barred) -> str:
    """Why no placement fits."""
    last = ladder(asked, barred)[-1]
    kept = dict.fromkeys(why for role, each in barred.items() if asked[role]["name"] == "auto" for why in each.values())
    beside = f"; beside {' and '.join(kept)} fewer weights can be away" if kept else ""
    least = {each.name: _running(each, last[each.role]) for each in budget.holdings}
    needs = ", ".join(f"{name} {shown(size)}" for name, size in least.items())
    return (
        f"memory.budget={shown(budget.bytes)}: no placement of weights keeps within it; these take, while they "
        f"run, {needs}, and the denoiser's activations about {shown(budget.activations)}{beside}; use a larger "
        "budget, a smaller precision, or quantization"
    )


def _sized(held: Holding, elements: Mapping[str, int]) -> Holding:
    element = elements.get(held.name, held.element)
    sizes = {key: getattr(held, key) * element // held.element for key in ("bytes", "block", "outside")}
    return held.model_copy(update=sizes)


def _staying(held: Holding, mode: Mapping[str, Any]) -> int:
    """What of it is on the device while another stage runs."""
    if mode["name"] == "layerwise":
        return min(held.bytes, held.outside + (mode.get("resident_blocks") or 0) * held.block)
    return 0 if mode["name"] in ("after_use", "module") else held.bytes


def _running(held: Holding, mode: Mapping[str, Any]) -> int:
    if mode["name"] != "layerwise":
        return held.bytes
    ahead = 1 if mode.get("prefetch") is None else mode["prefetch"]
    return min(held.bytes, _staying(held, mode) + (1 + ahead) * held.block)


def _is_free(asked: Modes, modes: Modes, role: str) -> bool:
    """Whether a role is streamed, and the ladder says so."""
    return bool(asked[role]["name"] == "auto" and modes[role]["name"] == "layerwise")


def _roomy(held: list[Holding], asked: Modes, modes: Modes, budget: BudgetPlan) -> Modes:
    """The same, with as many streamed blocks that stay as there is room for; at least one comes and goes."""
    for role in [role for role in modes if _is_free(asked, modes, role)]:
        most = min((each.blocks for each in held if each.role == role), default=1) - 1
        tried = ({**modes, role: {**modes[role], "resident_blocks": count}} for count in range(most, 0, -1))
        modes = next((more for more in tried if peak(held, more, budget.activations) <= budget.bytes), modes)
    return modes

"""What makes a run need less memory, from the recipe at hand: what changes no output first, then what does."""

from collections.abc import Callable
from dataclasses import dataclass

from difftool.planning.conflicts import ROLES
from difftool.planning.plan import Item, Plan
from difftool.planning.tree import word_of

LOAD = "load"  # beside the stages: while weights load
WEIGHTS = (LOAD, "denoising")
LARGE = ("text_encoding", "denoising", "decoding")  # most models have no image encoder, and it is small
PRECISIONS = {
    "text_encoding": "--text-encoder-precisions",
    "denoising": "--dit-precision",
    "decoding": "--vae-precision",
}


@dataclass(frozen=True)
class Remedy:
    """Something to change where memory ran out in one of `stages`, and `helps` in this plan on this kind of device."""

    stages: tuple[str, ...]
    helps: Callable[[Plan, str], bool]
    text: str


REMEDIES = (
    Remedy(
        (LOAD, *ROLES),
        lambda plan, device: _native(plan) and any(_stays(plan, role) for role in LARGE),
        "--enable-cpu-offload, which sends the weights of every stage away while others run",
    ),
    Remedy(
        WEIGHTS,
        lambda plan, device: _native(plan) and plan.degrees.sharing == 1 and _offload(plan, "denoising") != "layerwise",
        "--enable-layerwise-offload, which streams the transformer block by block",
    ),
    Remedy(
        WEIGHTS,
        lambda plan, device: device == "cuda" and plan.degrees.sharing == plan.degrees.tp == 1 and _native(plan),
        "--num-gpus N --use-hsdp, which deals the transformer's weights out to N devices",
    ),
    Remedy(
        ("decoding",),
        lambda plan, device: word_of(plan.stages["decoding"]["tiling"]) != "on",
        "--vae-tiling, which decodes in tiles and blends them",
    ),
    *(
        Remedy(
            (stage, *((LOAD,) if stage == "denoising" else ())),
            lambda plan, device, stage=stage: _in_fp32(plan, stage, device),  # type: ignore[misc]
            f"{flag} bf16, half of fp32",
        )
        for stage, flag in PRECISIONS.items()
    ),
    Remedy(
        WEIGHTS,
        lambda plan, device: word_of(plan.stages["denoising"]["quantization"]) == "none",
        "--set stages.denoising.quantization=int8, a quarter of fp32",
    ),
)


def remedies(plan: Plan, stage: str | None, device: str, item: Item | None) -> str:
    """The remedies in order, in one line; `device` is the kind that ran out."""
    found = [remedy.text for remedy in REMEDIES if stage in remedy.stages and remedy.helps(plan, device)]
    return "; or ".join([*found, *([_smaller(item)] if item is not None else [])])


def _smaller(item: Item) -> str:
    values = item.sampling
    size = f"less than {values.get('width')} x {values.get('height')} pixels"
    frames = values.get("num_frames") or 1
    return f"ask for {size}" + (f" or {frames} frames" if frames > 1 else "")


def _offload(plan: Plan, role: str) -> str:
    return str(word_of(plan.stages[role]["offload"]))


def _stays(plan: Plan, role: str) -> bool:
    """Whether the weights of a stage are on the device all the time, and could be away."""
    dealt = plan.degrees.sharing > 1 if role == "denoising" else role == "text_encoding" and plan.stages[role]["tp"] > 1
    return not dealt and _offload(plan, role) in ("auto", "none")


def _native(plan: Plan) -> bool:
    return plan.model.backend == "native"


def _in_fp32(plan: Plan, stage: str, device: str) -> bool:
    asked = plan.stages[stage]["precision"]
    every = [asked] if isinstance(asked, str) else list(asked)
    auto = any(choice.key == f"stages.{stage}.precision" and choice.value == "fp32" for choice in plan.choices)
    return "fp32" in every or ("auto" in every and (auto or device == "cpu"))

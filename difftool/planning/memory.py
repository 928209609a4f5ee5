"""What a rank of a plan holds: weights, by counting, and the denoiser's activations, by an estimate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from difftool.anatomy import Anatomy, Block, Cost
from difftool.facts import ELEMENT
from difftool.families.parts import DEALT
from difftool.planning.checkpoint import Checkpoint, checkpoint_folder
from difftool.planning.communication import Forward, place_of, tokens_of
from difftool.planning.plan import Degrees, QuantizedPrediction
from difftool.planning.stored import stored_numbers

ROLES = {
    "transformer": "denoising",
    "text_encoder": "text_encoding",
    "image_encoder": "image_encoding",
    "vae": "decoding",
}


def precision_of(component: str, checkpoint: Checkpoint, recipe: Mapping[str, Any]) -> str:
    """`auto` is what CUDA's is, except on a CPU and in stages that stay in fp32."""
    role = role_of(component)
    asked = recipe["stages"][role]["precision"]
    if not isinstance(asked, str):
        asked = asked[int(component[-1]) - 1 if component[-1].isdigit() else 0]
    if asked != "auto":
        return str(asked)
    return "fp32" if role in checkpoint.family.keep_fp32 or recipe["launch"]["device"] == "cpu" else "bf16"


def denoiser_bytes(
    checkpoint: Checkpoint,
    anatomy: Anatomy,
    degrees: Degrees,
    rank: int,
    element: int,
    quantized: QuantizedPrediction | None = None,
) -> dict[str, int]:
    """Weights of a rank's part of each denoiser, less what quantization saves of it."""
    if degrees.sharing > 1:
        size = anatomy.shared_bytes(element, degrees.sharing, rank % degrees.sharing)
    else:
        size = anatomy.weight_bytes(element, degrees.tp, place_of(rank, degrees)["tp"])
    size -= quantized.saved if quantized is not None else 0
    names = ("transformer", "transformer_2") if _has_two(checkpoint) else ("transformer",)
    return dict.fromkeys(names, size)


def other_bytes(checkpoint: Checkpoint, cost: Cost, recipe: Mapping[str, Any]) -> dict[str, int | None]:
    """Weights of the other components, by their files or, of a published checkpoint, by what is known; None of one
    that comes from elsewhere.
    """
    model, numbers = checkpoint.model, dict[str, int | None]()
    if any(model.hub_id == known.hub_id for known in checkpoint.family.checkpoints):
        numbers |= cost.others(checkpoint.configs)
    folder = checkpoint_folder(model.hub_id or model.folder or model.name, model.revision)
    for name in (*checkpoint.pipeline.components, *checkpoint.pipeline.optional):
        if role_of(name) in ("", "denoising"):
            continue
        if folder is not None and (here := stored_numbers(folder / name)) is not None:
            numbers[name] = here
        if (part := model.components.get(name)) is not None:
            place = part.file or part.folder
            numbers[name] = stored_numbers(Path(place)) if place is not None else None
    if _quantizes(recipe["stages"]["text_encoding"]["quantization"]):  # how much of them is in blocks is not known
        numbers |= {name: None for name in numbers if role_of(name) == "text_encoding"}
    return {
        name: None if count is None else _held(name, count, recipe) * ELEMENT[precision_of(name, checkpoint, recipe)]
        for name, count in numbers.items()
    }


def _quantizes(asked: str | Mapping[str, Any]) -> bool:
    return (asked if isinstance(asked, str) else asked["name"]) != "none"


def _held(name: str, count: int, recipe: Mapping[str, Any]) -> int:
    """Of a component's parameters, those that one rank has. An encoder that nobody counted is taken for whole."""
    dealt = DEALT.get(count, 0) if role_of(name) == "text_encoding" else 0
    return count - dealt + dealt // int(recipe["stages"]["text_encoding"]["tp"])


def activation_bytes(calls: Sequence[Forward], degrees: Degrees, rank: int, element: int) -> int:
    """An estimate of the denoiser's: the tokens that run through a block, as they are and normed, with the inputs and
    outputs of its largest layer.
    """
    numbers = [_activations(call, block, degrees, rank) for call in calls for block in call.anatomy.blocks]
    return element * max(numbers)


def _activations(call: Forward, block: Block, degrees: Degrees, rank: int) -> int:
    def tokens(streams: tuple[str, ...]) -> int:
        return tokens_of(call.anatomy, block, streams, degrees, rank)

    layers = []
    for linear in block.linears:
        inputs = linear.inputs // (degrees.tp if linear.split == "row" else 1)
        outputs = linear.count * linear.outputs // (degrees.tp if linear.split == "column" else 1)
        layers.append(tokens(linear.streams) * (inputs + outputs))
    return call.samples * (2 * tokens(call.anatomy.dealt) * call.anatomy.width + max(layers))


def _has_two(checkpoint: Checkpoint) -> bool:
    """Whether there is a second denoiser."""
    index = checkpoint.configs["index"]
    if "transformer_2" in index:
        return bool(index["transformer_2"][0])
    return "transformer_2" in checkpoint.pipeline.optional and index.get("boundary_ratio") is not None


def role_of(component: str) -> str:
    """The stage whose precision a component has; "" for what has no weights."""
    return ROLES.get(component.rstrip("_0123456789"), "")

"""What a plan costs before it runs: memory of each rank, what ranks send, and how it would scale. Torch-free.

Parameters, FLOPs and communication are counted; activations and times are estimates, by assumptions that are named.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from difftool.anatomy import Anatomy, Cost, Request, published_cost
from difftool.facts import ELEMENT
from difftool.planning.checkpoint import Checkpoint
from difftool.planning.communication import (
    Asked,
    Lines,
    forwards,
    item_traffic,
    joins_branches,
    lines_of,
    place_of,
    rounds,
    step_traffic,
)
from difftool.planning.memory import activation_bytes, denoiser_bytes, other_bytes, precision_of
from difftool.planning.pictures import as_lists, size_of
from difftool.planning.plan import Degrees, Prediction, RankPrediction, Sending
from difftool.planning.quantizing import quantized_layers
from difftool.planning.scaling import scaling


def predict(
    checkpoint: Checkpoint, degrees: Degrees, values: Mapping[str, Any], recipe: Mapping[str, Any]
) -> Prediction | None:
    """Of one item with these sampling values. None for a model whose family says nothing of its cost, or whose
    configs are not here or lack a number.
    """
    if checkpoint.family.cost is None:
        return None
    try:
        return _predict(published_cost(checkpoint.family.cost), checkpoint, degrees, values, recipe)
    except KeyError:
        return None


def anatomy_of(checkpoint: Checkpoint, values: Mapping[str, Any]) -> Anatomy | None:
    """One forward of the denoiser with these sampling values; None where it is not known."""
    if checkpoint.family.cost is None:
        return None
    pictures = [size_of(path) for path in as_lists(values).get("image", ())]
    try:
        return published_cost(checkpoint.family.cost).anatomy(_configs(checkpoint), Request(values, pictures))
    except KeyError:
        return None


def _predict(
    cost: Cost, checkpoint: Checkpoint, degrees: Degrees, values: Mapping[str, Any], recipe: Mapping[str, Any]
) -> Prediction:
    """Raises KeyError for a number that no config has."""
    configs = _configs(checkpoint)
    pictures = [size_of(path) for path in as_lists(values).get("image", ())]
    asked = Asked(values, pictures, guided=checkpoint.family.branches(values) > 1)
    calls = forwards(cost, configs, asked, joined=joins_branches(degrees))
    precision, others = precision_of("transformer", checkpoint, recipe), other_bytes(checkpoint, cost, recipe)
    element, anatomy = ELEMENT[precision], calls[0].anatomy
    quantize = partial(quantized_layers, anatomy, recipe["stages"]["denoising"]["quantization"], element, degrees.tp)
    ranks = tuple(
        RankPrediction(
            rank=rank,
            place=place_of(rank, degrees),
            weights={
                **denoiser_bytes(checkpoint, anatomy, degrees, rank, element, quantize(place_of(rank, degrees)["tp"])),
                **others,
            },
            activations=activation_bytes(calls, degrees, rank, element),
            step=sendings(step_traffic(calls, 0, degrees, rank, element)),
            item=sendings(item_traffic(calls, values["num_inference_steps"], degrees, rank, element)),
        )
        for rank in range(degrees.num_gpus)
    )
    alone, launch = forwards(cost, configs, asked, joined=True), recipe["launch"]
    steps = [rank.step for rank in ranks]
    return Prediction(
        precision=precision,
        quantized=quantize(),
        tokens=dict(anatomy.tokens),
        exact=cost.exact,
        flops=sum(call.samples * call.anatomy.flops() for call in alone if 0 in call.active),
        lines=lines_of(degrees),
        forwards=len(list(rounds(calls, 0, degrees.cfg))),
        ranks=ranks,
        scaling=()
        if launch["device"] == "cpu"
        else scaling(alone, calls, degrees, steps, precision=precision, nodes=launch["nnodes"]),
    )


def sendings(lines: Lines) -> tuple[Sending, ...]:
    """Traffic as data of a plan."""
    return tuple(
        Sending(line=line, collective=name, calls=calls, bytes=traffic.bytes[name])
        for line, traffic in lines.items()
        for name, calls in traffic.calls.items()
    )


def _configs(checkpoint: Checkpoint) -> dict[str, Mapping[str, Any]]:
    """With the pipeline class, which facts of a checkpoint may leave out."""
    index = {"_class_name": checkpoint.model.pipeline_class, **checkpoint.configs["index"]}
    return {**checkpoint.configs, "index": index}

"""What `memory.budget` is held against: the weights that a rank will have, by blocks where they may be streamed."""

from collections.abc import Mapping, Sequence
from typing import Any

from difftool.errors import Problem
from difftool.facts import ELEMENT
from difftool.planning.budget import Modes, barred_by, choose, fixed, shortfall
from difftool.planning.checkpoint import Checkpoint, checkpoint_folder
from difftool.planning.links import RATES, WITHIN
from difftool.planning.memory import precision_of, role_of
from difftool.planning.plan import BudgetPlan, Choice, Degrees, Holding, Prediction, Streaming
from difftool.planning.prediction import anatomy_of, predict
from difftool.planning.sizes import shown
from difftool.planning.stored import stored_blocks
from difftool.recipe.fields import parse_bytes

KEY = "memory.budget"
LINK = "PCIe"  # between the host's memory and the device's


def plan_budget(
    checkpoint: Checkpoint, degrees: Degrees, values: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any]
) -> BudgetPlan | list[Problem] | None:
    """Of the item that needs most, by the sampling values of every one; None without a budget, problems where the sizes
    are not known.
    """
    size = recipe["memory"]["budget"]
    if size is None:
        return None
    unlike = list[Mapping[str, Any]]()  # most items differ by their prompt alone
    for one in values:
        unlike += [one] if one not in unlike else []
    found = [predict(checkpoint, degrees, one, recipe) for one in unlike]
    predictions = [prediction for prediction in found if prediction is not None]
    if not predictions or len(predictions) < len(found):
        message = f"{KEY}: the cost of {checkpoint.family.title} is not known; leave it out and set stages.*.offload"
        return [Problem(KEY, message)]
    largest = max(predictions, key=lambda each: max(rank.activations for rank in each.ranks))
    rank = max(largest.ranks, key=lambda each: sum(size or 0 for size in each.weights.values()))
    if unknown := [name for name, weight in rank.weights.items() if weight is None]:
        message = f"{KEY}: the size of {', '.join(unknown)} is not known; `difftool models fetch` brings the files"
        return [Problem(KEY, message)]
    holdings = tuple(
        _holding(name, weight or 0, checkpoint, largest, values[0], recipe) for name, weight in rank.weights.items()
    )
    activations = max(each.activations for each in largest.ranks)
    return BudgetPlan(bytes=parse_bytes(size), holdings=holdings, activations=activations)


def unfit(budget: BudgetPlan | None, recipe: Mapping[str, Any]) -> str | None:
    """Why nothing keeps within the budget, at the precisions that are planned for; None where something does."""
    if budget is None or _chosen(budget, recipe) is not None:
        return None
    return shortfall(budget, _asked(recipe), barred=barred_by(recipe["stages"]))


def budget_choices(budget: BudgetPlan | None, recipe: Mapping[str, Any]) -> tuple[Choice, ...]:
    """What `auto` will come to, at the precisions that are planned for."""
    asked, chosen = _asked(recipe), _chosen(budget, recipe)
    if budget is None or chosen is None:
        return ()
    roles = {each.role for each in budget.holdings}
    reason = f"changes no output, and is the first that keeps within {shown(budget.bytes)}"
    return tuple(
        Choice(key=f"stages.{role}.offload", value=_shown(chosen[role]), reason=reason)
        for role, mode in asked.items()
        if mode["name"] == "auto" and role in roles
    )


def streaming(
    prediction: Prediction,
    checkpoint: Checkpoint,
    degrees: Degrees,
    values: Mapping[str, Any],
    recipe: Mapping[str, Any],
    budget: BudgetPlan | None,
) -> Streaming | None:
    """What comes for a step of a denoiser whose blocks are streamed; None where none are, and on a CPU."""
    mode = (_chosen(budget, recipe) or _asked(recipe))["denoising"]
    if mode["name"] != "layerwise" or recipe["launch"]["device"] == "cpu":
        return None
    weight = prediction.ranks[0].weights["transformer"] or 0
    held = _holding("transformer", weight, checkpoint, prediction, values, recipe)
    moving = max(0, held.blocks - (mode.get("resident_blocks") or 0))
    size = prediction.forwards * (held.bytes - held.outside) * moving // max(1, held.blocks)
    work = prediction.flops / (degrees.num_gpus // degrees.dp)
    return Streaming(
        bytes=size,
        link=LINK,
        coming_s=size / WITHIN[LINK].bandwidth,
        computing_s=work / RATES[prediction.precision],
    )


def _asked(recipe: Mapping[str, Any]) -> Modes:
    return fixed({role: stage["offload"] for role, stage in recipe["stages"].items()})


def _chosen(budget: BudgetPlan | None, recipe: Mapping[str, Any]) -> Modes | None:
    """What keeps within the budget at the precisions that are planned for; None without one, or where nothing does."""
    return choose(budget, _asked(recipe), {}, barred=barred_by(recipe["stages"])) if budget is not None else None


def _shown(mode: Mapping[str, Any]) -> str:
    resident = mode.get("resident_blocks")
    return f"{mode['name']}, {resident} blocks stay" if resident else str(mode["name"])


def _holding(
    name: str,
    weight: int,
    checkpoint: Checkpoint,
    prediction: Prediction,
    values: Mapping[str, Any],
    recipe: Mapping[str, Any],
) -> Holding:
    role, element = role_of(name), ELEMENT[precision_of(name, checkpoint, recipe)]
    blocks, block, within = 0, 0, 0
    if role == "denoising":
        element = ELEMENT[prediction.precision]
        anatomy = anatomy_of(checkpoint, values)
        assert anatomy is not None, "what is predicted has an anatomy"
        listed = [each for each in anatomy.blocks if each.name]
        blocks = sum(each.count for each in listed)
        sizes = [element * each.parameters() for each in listed]
        whole = sum(each.count * size for each, size in zip(listed, sizes, strict=True))
        within = whole - max(0, anatomy.weight_bytes(element) - weight)  # of a rank that has a part, or quantized ones
        block = max(sizes, default=0) * within // max(1, whole)
    elif role == "text_encoding":
        model = checkpoint.model
        folder = checkpoint_folder(model.hub_id or model.folder or model.name, model.revision)
        found = stored_blocks(folder / name) if folder is not None else None
        if found is not None:
            blocks, block, within = found.count, found.largest * element, found.numbers * element
    return Holding(
        name=name, role=role, bytes=weight, element=element, blocks=blocks, block=block, outside=max(0, weight - within)
    )

"""What each item is sampled with: the recipe over the checkpoint over the family, checked against the facts."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from difftool.errors import Problem
from difftool.planning.checkpoint import Checkpoint

PICTURE_INPUTS = ("image", "mask", "last_image")
VIDEO_KEYS = ("num_frames", "fps")


@dataclass(frozen=True)
class Resolved:
    """Values by sampling key, and where those came from that the recipe did not give."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]


def resolve_sampling(given: Mapping[str, Any], checkpoint: Checkpoint) -> Resolved:
    """`given` holds the keys the recipe sets (none of them null); defaults fill the rest."""
    facts = checkpoint.family
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key in facts.sampling:
        if key in given:
            values[key] = given[key]
        elif key in checkpoint.defaults:
            values[key], origins[key] = checkpoint.defaults[key], checkpoint.defaults_origin
        else:
            values[key], origins[key] = facts.sampling[key], f"family {facts.title}"
        if not understands(checkpoint, key):
            values[key] = given.get(key)
    sigmas = (given.get("scheduler") or {}).get("sigmas")
    if sigmas and "num_inference_steps" not in given:
        values["num_inference_steps"], origins["num_inference_steps"] = len(sigmas), "sampling.scheduler.sigmas"
    for key in ("scheduler", "extra"):
        values[key] = given.get(key) or {}
    return Resolved(values, origins)


def understands(checkpoint: Checkpoint, key: str) -> bool:
    """Whether a guidance key means something to this checkpoint; other keys always do."""
    flag = checkpoint.family.guidance.get(key)
    return flag is None or bool(checkpoint.transformer.get(flag, False))


def check_sampling(given: Mapping[str, Any], values: Mapping[str, Any], checkpoint: Checkpoint) -> list[Problem]:
    """Everything wrong with one item's request, each with the way out."""
    return [problem for check in CHECKS for problem in check(given, values, checkpoint)]


def _ignored_keys(given: Mapping[str, Any], values: Mapping[str, Any], checkpoint: Checkpoint) -> list[Problem]:
    facts, found = checkpoint.family, []
    for key in given:
        name = f"sampling.{key}"
        if key in PICTURE_INPUTS:
            found.append(Problem(name, f"{name}: {facts.title} makes pictures from text alone and takes no {key}"))
        elif key in VIDEO_KEYS and facts.num_frames is None:
            found.append(Problem(name, f"{name}: {facts.title} makes single pictures; leave {key} out"))
        elif key == "guidance_scale_2" and key not in facts.sampling:
            found.append(Problem(name, f"{name}: {facts.title} has one transformer; use guidance_scale"))
        elif key in facts.guidance and not understands(checkpoint, key):
            others = [k for k in facts.guidance if understands(checkpoint, k)]
            way_out = f"; use {' or '.join(others)} with a negative prompt" if others else ""
            message = f"{name}={given[key]}: this checkpoint has no {facts.guidance[key]} and ignores it{way_out}"
            found.append(Problem(name, message))
    return found


def _sizes(given: Mapping[str, Any], values: Mapping[str, Any], checkpoint: Checkpoint) -> list[Problem]:
    multiple, found = checkpoint.family.size_multiple, []
    for key in ("height", "width"):
        value = values[key]
        if value % multiple:
            below = value // multiple * multiple
            near = ", ".join(str(v) for v in (below, below + multiple) if v > 0)
            message = f"sampling.{key}={value} is not a multiple of {multiple}; nearest: {near}"
            found.append(Problem(f"sampling.{key}", message))
    return found


def _lengths(given: Mapping[str, Any], values: Mapping[str, Any], checkpoint: Checkpoint) -> list[Problem]:
    longest, value = checkpoint.family.max_sequence_length, values["max_sequence_length"]
    if value <= longest:
        return []
    message = f"sampling.max_sequence_length={value}: {checkpoint.family.title} takes {longest} at most"
    return [Problem("sampling.max_sequence_length", message)]


def _second_branch(given: Mapping[str, Any], values: Mapping[str, Any], checkpoint: Checkpoint) -> list[Problem]:
    """A negative prompt and a guidance above 1 only work together."""
    key = checkpoint.family.second_branch
    scale, negative = values.get(key), values.get("negative_prompt")
    above = scale is not None and scale > 1
    if above and negative is None:
        name = f"sampling.{key}"
        return [Problem(name, f"{name}={scale} needs a negative prompt to guide away from; give one ('' will do)")]
    if "negative_prompt" in given and not above:
        message = f"sampling.negative_prompt: ignored at {key}={scale}; set {key} above 1"
        return [Problem("sampling.negative_prompt", message)]
    return []


def _schedule(given: Mapping[str, Any], values: Mapping[str, Any], checkpoint: Checkpoint) -> list[Problem]:
    sigmas, steps = (given.get("scheduler") or {}).get("sigmas"), values["num_inference_steps"]
    if not sigmas or len(sigmas) == steps:
        return []
    message = f"sampling.scheduler.sigmas: {len(sigmas)} sigmas for num_inference_steps={steps}"
    return [Problem("sampling.scheduler.sigmas", message)]


def _extra(given: Mapping[str, Any], values: Mapping[str, Any], checkpoint: Checkpoint) -> list[Problem]:
    known, found = checkpoint.family.extra, []
    for key, value in (given.get("extra") or {}).items():
        name = f"sampling.extra.{key}"
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            offer = f"did you mean {close[0]!r}?" if close else f"{checkpoint.family.title} takes: {', '.join(known)}"
            found.append(Problem(name, f"{name}: unknown argument, {offer}"))
        elif not isinstance(value, known[key]):
            found.append(Problem(name, f"{name}: {value!r} is not a {known[key].__name__}"))
    return found


Check = Callable[[Mapping[str, Any], Mapping[str, Any], Checkpoint], list[Problem]]
CHECKS: tuple[Check, ...] = (_ignored_keys, _sizes, _lengths, _second_branch, _schedule, _extra)

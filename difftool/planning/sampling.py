"""What each item is sampled with: the recipe over the checkpoint over the family, checked against the facts."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from difftool.errors import Problem
from difftool.facts import NOT
from difftool.planning.checkpoint import Checkpoint
from difftool.planning.pictures import as_lists, size_of

PICTURE_KEYS = ("image", "last_image", "mask")
VIDEO_KEYS = ("num_frames", "fps")
ANYWHERE = ("scheduler", "extra")  # keys of every family


@dataclass(frozen=True)
class Resolved:
    """Values by sampling key, and where those came from that the recipe did not give."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]


def resolve_sampling(given: Mapping[str, Any], checkpoint: Checkpoint) -> Resolved:
    """`given` holds the keys the recipe sets (none of them null); defaults fill the rest."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, default in checkpoint.sampling.items():
        if key in given:
            values[key] = given[key]
        else:
            values[key], origins[key] = _default(key, default, checkpoint)
        if not checkpoint.understands(key):
            values[key] = given.get(key)
    for key in PICTURE_KEYS:
        if key in given:
            values[key] = [given[key]] if key == "image" and isinstance(given[key], str) else given[key]
    sigmas = (given.get("scheduler") or {}).get("sigmas")
    if sigmas and "num_inference_steps" not in given:
        values["num_inference_steps"], origins["num_inference_steps"] = len(sigmas), "sampling.scheduler.sigmas"
    for key in ANYWHERE:
        values[key] = {**checkpoint.defaults.get(key, {}), **(given.get(key) or {})}
    open_sides = [side for side in ("height", "width") if side not in given]
    fits = len(open_sides) == 2 or checkpoint.pipeline.fits_one_side
    if checkpoint.pipeline.fits_image and fits and open_sides and values.get("image"):
        _fit(open_sides, values, origins, checkpoint)
    return Resolved(values, origins)


def _default(key: str, default: object, checkpoint: Checkpoint) -> tuple[Any, str]:
    """What a key is where the recipe does not give it, and where that came from."""
    configured = checkpoint.family.configured_sampling(checkpoint.configs)
    if key in checkpoint.defaults:
        return checkpoint.defaults[key], checkpoint.defaults_origin
    if key in configured:
        return configured[key], "the checkpoint"
    return default, f"family {checkpoint.family.title}"


def _fit(sides: Sequence[str], values: dict[str, Any], origins: dict[str, str], checkpoint: Checkpoint) -> None:
    """These of height and width by a picture's: by the pipeline's own rule, or in its shape at the default area."""
    try:
        width, height = size_of(values["image"][checkpoint.pipeline.fitted_image])
    except ValueError:
        return  # told by the check of the pictures
    if callable(rule := checkpoint.pipeline.fits_image):
        fitted = dict(zip(("width", "height"), rule(width, height), strict=True))
    else:
        area, multiple = values["height"] * values["width"], checkpoint.family.multiple(checkpoint.configs)
        exact = {"height": math.sqrt(area * height / width), "width": math.sqrt(area * width / height)}
        fitted = {side: max(multiple, round(pixels / multiple) * multiple) for side, pixels in exact.items()}
    for side in sides:
        values[side], origins[side] = fitted[side], "sampling.image"


def check_sampling(given: Mapping[str, Any], values: Mapping[str, Any], checkpoint: Checkpoint) -> list[Problem]:
    """Everything wrong with one item's request, each with the way out; the family's own rules read what is valid."""
    found = [problem for check in CHECKS for problem in check(given, values, checkpoint)]
    refuses = checkpoint.family.refuses
    if found or refuses is None:
        return found
    return [Problem(key, message) for key, message in refuses(values, checkpoint.configs).items()]


def _ignored_keys(given: Mapping[str, Any], values: Mapping[str, Any], checkpoint: Checkpoint) -> list[Problem]:
    """Keys that would do nothing: of another kind of family, or of a checkpoint with other parts."""
    title, found = checkpoint.family.title, []
    for key in [key for key in given if key not in PICTURE_KEYS + ANYWHERE]:
        name = f"sampling.{key}"
        if key in VIDEO_KEYS and key not in checkpoint.sampling:
            found.append(Problem(name, f"{name}: {title} makes single pictures; leave {key} out"))
        elif key == "guidance_scale_2" and key not in checkpoint.sampling:
            found.append(Problem(name, f"{name}: {title} has one transformer; use guidance_scale"))
        elif key not in checkpoint.sampling:
            known = ", ".join(sorted(checkpoint.sampling))
            found.append(Problem(name, f"{name}: {title} ignores it; it takes {known}"))
        elif not checkpoint.understands(key):
            others = [k for k in checkpoint.family.guidance if checkpoint.understands(k)]
            way_out = f"; use {' or '.join(others)} with a negative prompt" if others else ""
            need = checkpoint.family.needs[key]
            flag = f"{'has' if need.startswith(NOT) else 'has no'} {need.rpartition('.')[2]}"
            message = f"{name}={given[key]}: this checkpoint {flag} and ignores it{way_out}"
            found.append(Problem(name, message))
    return found


def _pictures(given: Mapping[str, Any], values: Mapping[str, Any], checkpoint: Checkpoint) -> list[Problem]:
    """As many pictures as the checkpoint takes, each of them readable."""
    title, listed = checkpoint.family.title, as_lists(given)
    taken = {"image": checkpoint.image_counts[1] > 0, "last_image": checkpoint.pipeline.last_image, "mask": False}
    found = []
    for key in [key for key in listed if not taken[key]]:
        why = "makes pictures from text alone and takes no" if checkpoint.pipeline.makes == "image" else "takes no"
        found.append(Problem(f"sampling.{key}", f"sampling.{key}: {title} {why} {key}"))
    least, most = checkpoint.image_counts
    count = len(listed.get("image", ()))
    refuses = checkpoint.pipeline.refuses_image or (lambda width, height: "")
    if count < least:
        message = f"sampling.image: {title} ({checkpoint.model.pipeline_class}) needs a picture; give one with --image"
        found.append(Problem("sampling.image", message))
    if taken["image"] and count > most:
        found.append(Problem("sampling.image", f"sampling.image: {count} pictures; {title} takes {most} at most"))
    for key, paths in listed.items():
        for path in paths if taken[key] else ():
            try:
                wrong = refuses(*size_of(path))
            except ValueError as error:
                wrong = str(error)
            if wrong:
                found.append(Problem(f"sampling.{key}", f"sampling.{key}: {path}: {wrong}"))
    return found


def _sizes(given: Mapping[str, Any], values: Mapping[str, Any], checkpoint: Checkpoint) -> list[Problem]:
    multiple, found = checkpoint.family.multiple(checkpoint.configs), []
    for key in ("height", "width"):
        if values.get(key) is not None and values[key] % multiple:
            message = f"sampling.{key}={values[key]} is not a multiple of {multiple}"
            found.append(Problem(f"sampling.{key}", f"{message}; nearest: {_nearest(values[key], multiple, 0)}"))
    return found


def _frames(given: Mapping[str, Any], values: Mapping[str, Any], checkpoint: Checkpoint) -> list[Problem]:
    (step, offset), frames = checkpoint.family.num_frames or (1, 0), values.get("num_frames")
    if frames is None or (frames - offset) % step == 0:
        return []
    rule = f"{step}k + {offset}" if offset else f"a multiple of {step}"
    message = f"sampling.num_frames={frames} is not {rule}; nearest: {_nearest(frames, step, offset)}"
    return [Problem("sampling.num_frames", message)]


def _nearest(value: int, step: int, offset: int) -> str:
    """The valid values on both sides of one that is not."""
    below = (value - offset) // step * step + offset
    return ", ".join(str(v) for v in (below, below + step) if v > 0)


def _lengths(given: Mapping[str, Any], values: Mapping[str, Any], checkpoint: Checkpoint) -> list[Problem]:
    longest, value = checkpoint.family.max_sequence_length, values.get("max_sequence_length")
    if value is None or value <= longest:
        return []
    message = f"sampling.max_sequence_length={value}: {checkpoint.family.title} takes {longest} at most"
    return [Problem("sampling.max_sequence_length", message)]


def _second_branch(given: Mapping[str, Any], values: Mapping[str, Any], checkpoint: Checkpoint) -> list[Problem]:
    """A negative prompt and a guidance that runs a second branch only work together."""
    facts = checkpoint.family
    key, above = facts.second_branch, facts.second_branch_above
    if key is None or not {key, "negative_prompt"} <= checkpoint.sampling.keys() or not checkpoint.understands(key):
        return []
    scale, negative = values.get(key), values.get("negative_prompt")
    if facts.guides(scale) and negative is None:
        name = f"sampling.{key}"
        return [Problem(name, f"{name}={scale} needs a negative prompt to guide away from; give one ('' will do)")]
    if "negative_prompt" in given and not facts.guides(scale):
        message = f"sampling.negative_prompt: ignored at {key}={scale}; set {key} above {above:g}"
        return [Problem("sampling.negative_prompt", message)]
    return []


def _schedule(given: Mapping[str, Any], values: Mapping[str, Any], checkpoint: Checkpoint) -> list[Problem]:
    sigmas, steps = (given.get("scheduler") or {}).get("sigmas"), values.get("num_inference_steps")
    name = "sampling.scheduler.sigmas"
    if sigmas and not checkpoint.family.takes_sigmas:
        return [Problem(name, f"{name}: {checkpoint.family.title}'s scheduler makes its own; set num_inference_steps")]
    if not sigmas or len(sigmas) == steps:
        return []
    return [Problem(name, f"{name}: {len(sigmas)} sigmas for num_inference_steps={steps}")]


def _extra(given: Mapping[str, Any], values: Mapping[str, Any], checkpoint: Checkpoint) -> list[Problem]:
    known, found = checkpoint.extra, []
    for key, value in (given.get("extra") or {}).items():
        name = f"sampling.extra.{key}"
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            takes = f"{checkpoint.family.title} takes: {', '.join(known) or 'none'}"
            offer = f"did you mean {close[0]!r}?" if close else takes
            found.append(Problem(name, f"{name}: unknown argument, {offer}"))
        elif not isinstance(value, (int, float) if known[key] is float else known[key]) or (
            isinstance(value, bool) and known[key] not in (bool, object)
        ):
            found.append(Problem(name, f"{name}: {value!r} is not a {known[key].__name__}"))
    return found


def _guided_extra(given: Mapping[str, Any], values: Mapping[str, Any], checkpoint: Checkpoint) -> list[Problem]:
    """Arguments that only a second branch reads, in a request that runs none."""
    facts, key = checkpoint.family, checkpoint.family.second_branch
    if not key or facts.guides(values.get(key)):
        return []
    way_out = f"ignored at {key}={values.get(key)}; set {key} above {facts.second_branch_above:g}"
    names = [f"sampling.extra.{name}" for name in given.get("extra") or {} if name in facts.guided_extra]
    return [Problem(name, f"{name}: {way_out}") for name in names]


Check = Callable[[Mapping[str, Any], Mapping[str, Any], Checkpoint], list[Problem]]
CHECKS: tuple[Check, ...] = (
    _ignored_keys,
    _pictures,
    _sizes,
    _frames,
    _lengths,
    _second_branch,
    _schedule,
    _extra,
    _guided_extra,
)

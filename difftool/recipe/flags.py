"""From the flags of a command line to overrides, and from a mistyped flag to the right one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches

from difftool.errors import Problem, RecipeError
from difftool.recipe.flag_table import FLAGS, FOREIGN_FLAGS, Flag
from difftool.recipe.overrides import Override, key_fault, parse_set

__all__ = ["FLAGS", "Flag", "Override", "flag_overrides", "parse_set", "suggest_flag"]

LORA = {"--lora-path": "path", "--lora-nickname": "nickname", "--lora-strength": "strength"}
MEDIA = {name: name for name in ("png", "jpg", "webp", "mp4", "gif", "wav", "npz")} | {"jpeg": "jpg"}
AS_IT_STANDS = ("text", "path")  # kinds whose text is never read as a number, list or null


def flag_overrides(given: Mapping[str, object]) -> list[Override]:
    """Overrides of the flags that were given, by any of their names. None, False and empty lists are not given.

    Raises RecipeError with every problem: LoRA lists of different lengths, two flags for one key, an odd STAGE=MODE.
    """
    problems: list[Problem] = []
    present = {_named(name): value for name, value in given.items() if value not in (None, False, (), [])}
    overrides = _lora(present, problems)
    for flag, value in present.items():
        if flag.names[0] not in LORA:
            overrides += _overrides(flag, value, problems)
    overrides = _agreed(overrides, problems)
    if problems:
        raise RecipeError(problems)
    return overrides


def suggest_flag(text: str, others: Iterable[str] = ()) -> str:
    """The flag meant by an unknown one such as `--num_gpus` or `--torch-dtype`, or an empty text.

    `others` are flags that are no recipe keys. One letter says too little to be corrected: it is a flag or it is none.
    """
    names = [*(name for flag in FLAGS for name in flag.names), *others]
    if not text.startswith("--"):
        return text if text in names else ""
    wanted = text.partition("=")[0].replace("_", "-").lower()
    if wanted in names:
        return wanted
    bare = {name.removeprefix("--"): name for name in names if name.startswith("--")}
    close = get_close_matches(wanted.removeprefix("--"), bare, n=1, cutoff=0.7)
    return FOREIGN_FLAGS.get(wanted) or (bare[close[0]] if close else "")


def _named(name: str) -> Flag:
    """The flag of a long or short name, or of a parameter name such as `tp_size`."""
    dashed = name if name.startswith("-") else "--" + name.replace("_", "-")
    return next(flag for flag in FLAGS if dashed in flag.names)


def _overrides(flag: Flag, value: object, problems: list[Problem]) -> Iterator[Override]:
    origin = flag.names[0]
    if flag.kind == "switch":
        yield from (Override(key, flag.value, origin) for key in (flag.key, *flag.also))
    elif flag.kind == "stage_mode":
        yield from _stage_modes(value, origin, problems)
    elif flag.kind == "devices":
        yield _devices(flag, str(value), problems)
    elif flag.kind == "file_name":
        yield from (Override(key, part, origin) for key, part in split_file_name(flag, str(value)))
    else:
        values = _values(value)
        single = values[0] if len(values) == 1 else values
        yield Override(flag.key, single, origin, parse=flag.kind not in AS_IT_STANDS)


def split_file_name(flag: Flag, text: str) -> Iterator[tuple[str, str]]:
    """`raccoon.mp4` -> the keys and values of a name and a format; a name without a medium's suffix is only a name."""
    stem, dot, suffix = text.rpartition(".")
    medium = MEDIA.get(suffix.lower())
    yield flag.key, stem if dot and medium else text
    if dot and medium:
        yield "output.format", medium


def _values(value: object) -> list[object]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _stage_modes(value: object, origin: str, problems: list[Problem]) -> Iterator[Override]:
    for text in _values(value):
        stage, equals, mode = str(text).partition("=")
        key = f"stages.{stage}.offload"
        if not equals:
            problems.append(Problem("stages", f"{text!r} is not STAGE=MODE, for example denoising=layerwise", origin))
        elif "." in stage or key_fault(key) is not None:
            stages = ", ".join(k.split(".")[1] for k in _stage_keys())
            problems.append(Problem("stages", f"{stage!r} is not one of the stages {stages}", origin))
        else:
            yield Override(key, mode, f"{origin} {text}", parse=True)


def _stage_keys() -> tuple[str, ...]:
    switch = _named("--enable-cpu-offload")
    return (switch.key, *switch.also)


def _devices(flag: Flag, text: str, problems: list[Problem]) -> Override:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        problems.append(Problem(flag.key, f"{text!r} is not a list of device indices such as 4,5,6,7", flag.names[0]))
        return Override(flag.key, None, flag.names[0])
    return Override(flag.key, [int(part) for part in parts], flag.names[0])


def _lora(present: Mapping[Flag, object], problems: list[Problem]) -> list[Override]:
    """One `model.lora` list out of the paired lists."""
    lists = {flag.names[0]: _values(value) for flag, value in present.items() if flag.names[0] in LORA}
    if not lists:
        return []
    counts = ", ".join(f"{len(values)} {name}" for name, values in lists.items())
    if "--lora-path" not in lists or len({len(values) for values in lists.values()}) > 1:
        message = f"{counts}; give one of each for every --lora-path"
        problems.append(Problem("model.lora", message, next(iter(lists))))
        return []
    return [Override("model.lora", list(_paired(lists, problems)), "--lora-path")]


def _paired(lists: Mapping[str, Sequence[object]], problems: list[Problem]) -> Iterator[dict[str, object]]:
    for index in range(len(lists["--lora-path"])):
        entry = {LORA[name]: values[index] for name, values in lists.items()}
        if isinstance(entry.get("strength"), str):
            try:
                entry["strength"] = float(str(entry["strength"]))
            except ValueError:
                message = f"model.lora.{index}.strength: {entry['strength']!r} is not a number"
                problems.append(Problem(f"model.lora.{index}.strength", message, "--lora-strength"))
        yield entry


def _agreed(overrides: Sequence[Override], problems: list[Problem]) -> list[Override]:
    """One override for each key; two flags that say different things are a problem, unless one refines the other."""
    kept: dict[str, Override] = {}
    for override in overrides:
        other = kept.get(override.key)
        if other is None or _refines(override, other):
            kept[override.key] = override
        elif other.value != override.value and not _refines(other, override):
            message = f"{override.key}: set by {other.origin} and by {override.origin}; give one of them"
            problems.append(Problem(override.key, message, override.origin))
    return list(kept.values())


def _refines(override: Override, other: Override) -> bool:
    switch = next((flag for flag in FLAGS if flag.names[0] == other.origin), None)
    return switch is not None and switch.refined_by == override.origin

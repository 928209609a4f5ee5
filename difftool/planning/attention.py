"""What of the attention that a recipe asks for no machine can do, and what `auto` will come to."""

from collections.abc import Iterator, Sequence
from typing import Any

from difftool.attention import (
    ALWAYS,
    AUTO,
    CROSS,
    SELF,
    SHOWN,
    Needs,
    Strategy,
    candidates,
    chosen,
    installed,
    listed,
    named,
    unable,
)
from difftool.errors import PlanError, Problem
from difftool.planning.checkpoint import Checkpoint
from difftool.planning.plan import Choice, Degrees, Item
from difftool.planning.prediction import anatomy_of

KEY = "stages.denoising.attention"
DENOISERS = ("transformer", "transformer_2")  # of the pipelines that run natively


def check_attention(setting: Any, checkpoint: Checkpoint, degrees: Degrees, items: Sequence[Item]) -> list[Problem]:
    """Attention that the model does not have, backends that cannot do what its attention needs, and those told to leave
    nothing out of an item.
    """
    facts = checkpoint.family
    native = checkpoint.model.backend == "native"
    roles = facts.attention if native else ()
    found = [problem for key in named(setting) if (problem := _unknown(key, checkpoint, roles)) is not None]
    split = degrees.ring * degrees.ulysses * degrees.tp > 1
    head, told = facts.head_width(checkpoint.configs) if native else None, set[tuple[str, str]]()
    for component in _components(checkpoint):
        for role in roles:
            name = chosen(setting, component, role).name
            needs = Needs(
                head,
                masked=facts.masked.get(role) == "always",
                ring=degrees.ring > 1 and role == SELF,
                split=split,
                video=facts.video_tokens and role == SELF,
            )
            faults = {each: unable(each, needs) for each in candidates(name, "")}
            if all(faults.values()) and (role, name) not in told:
                told.add((role, name))
                said = "; ".join(f"{each} {', and '.join(why)}" for each, why in faults.items())
                found.append(Problem(KEY, f"{KEY}={name}, for {role}-attention of {component}: {said}; use {ALWAYS}"))
    if facts.video_tokens:
        found += dict.fromkeys([*_idle(setting, checkpoint, items), *_unmasked(setting, checkpoint, items)])
    return found


def _unmasked(setting: Any, checkpoint: Checkpoint, items: Sequence[Item]) -> Iterator[Problem]:
    """Where a mask file is none, is one for another denoiser, or has too few steps for an item."""
    steps = max((item.sampling["num_inference_steps"] for item in items), default=0)
    for component in _components(checkpoint):
        file = chosen(setting, component, SELF).options.get("mask_strategy_file_path")
        if file is None:
            continue
        try:
            strategy = Strategy.read(file)
        except PlanError as error:
            yield Problem(KEY, f"{error.message}; {error.hint}")
            continue
        missing = strategy.missing(_layers(checkpoint, items) or 0, checkpoint.heads or 0)
        if fault := missing or strategy.too_short(steps):
            yield Problem(KEY, fault)


def _idle(setting: Any, checkpoint: Checkpoint, items: Sequence[Item]) -> Iterator[Problem]:
    """Where a `moba_config` makes every step of an item, or every layer, a full one."""
    steps = min((item.sampling["num_inference_steps"] for item in items), default=None)
    for component in _components(checkpoint):
        config = chosen(setting, component, SELF).options.get("moba_config", {})
        for option, there in (("first_full_step", steps), ("first_full_layer", _layers(checkpoint, items))):
            if config and there is not None and config[option] >= there:
                what = f"none of {there} {option.removeprefix('first_full_')}s"
                yield Problem(
                    KEY, f"{KEY}: moba_config.{option}={config[option]} leaves {what} to vmoba_attn; lower it"
                )


def _layers(checkpoint: Checkpoint, items: Sequence[Item]) -> int | None:
    """How many blocks the denoiser has, where that is known."""
    anatomy = anatomy_of(checkpoint, items[0].sampling) if items else None
    return sum(block.count for block in anatomy.blocks if block.name and block.dealt) if anatomy is not None else None


def _components(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The denoisers that a checkpoint may have."""
    pipeline = checkpoint.pipeline
    return tuple(name for name in DENOISERS if name in (*pipeline.components, *pipeline.optional))


def _unknown(key: str, checkpoint: Checkpoint, roles: tuple[str, ...]) -> Problem | None:
    """Where a setting names attention that the model does not have."""
    parts, title = key.split("."), checkpoint.family.title
    where, there = f"{KEY}.{key}", _components(checkpoint)
    if parts[0] == "components" and there and parts[1] not in there:
        return Problem(where, f"{where}: {title} has no such denoiser; it has {listed(there)}")
    if parts[-1] not in (SELF, CROSS) or parts[-1] in roles:
        return None
    if not roles:
        return Problem(
            where, f"{where}: {title} is run by diffusers, which tells no kinds of attention apart; use {KEY}"
        )
    return Problem(where, f"{where}: {title} has no {parts[-1]}-attention of its own; leave it out")


def attention_choice(setting: Any, checkpoint: Checkpoint, device: str) -> Choice | None:
    """What `auto` means, as far as this machine's packages tell; None where nothing is left to it."""
    roles, components = checkpoint.family.attention or ("",), _components(checkpoint) or ("",)
    if all(chosen(setting, component, role).name != "auto" for component in components for role in roles):
        return None
    there = {platform: [name for name in names if installed(name)] for platform, names in AUTO.items()}
    found = [f"{' or '.join(names)} on {SHOWN[platform]}" for platform, names in there.items() if names]
    if not found or device in ("cpu", "mps"):
        return Choice(key=KEY, value=ALWAYS, reason="runs on every platform")
    return Choice(
        key=KEY, value=f"{', '.join(found)}, else {ALWAYS}", reason="the first that fits the device and model"
    )

"""The LoRAs of a recipe: which file each one is, what it is called, and that it is there; its tensors are not read."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from difftool.errors import Problem, RecipeError, WeightsError
from difftool.planning.checkpoint import BUILTIN, Checkpoint
from difftool.planning.plan import LoraPlan, file_name

SUFFIX = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:/(.+))?")
TARGETS = {"transformer": "transformer", "transformer_2": "transformer_2", "critic": "fake_score_transformer"}


def builtin_loras() -> list[str]:
    """Names after `builtin:` of the LoRAs that ship with difftool."""
    folder = resources.files("difftool.builtin") / "loras"
    return sorted(entry.name.removesuffix(SUFFIX) for entry in folder.iterdir() if entry.name.endswith(SUFFIX))


def plan_loras(model: Mapping[str, Any], checkpoint: Checkpoint) -> tuple[LoraPlan, ...]:
    """The recipe's LoRAs, in order. Raises RecipeError with all that is wrong with them, and WeightsError for a local
    file that is missing or refused.
    """
    problems: list[Problem] = []
    found: list[LoraPlan] = []
    for index, entry in enumerate(model["lora"]):
        key = f"model.lora.{index}"
        try:
            lora = _plan_one(entry)
        except ValueError as error:
            problems.append(Problem(key, f"{key}: {error}"))
            continue
        if why := _target_fault(lora.target, checkpoint):
            problems.append(Problem(f"{key}.target", f"{key}.target={lora.target}: {why}"))
        taken = [i for i, other in enumerate(found) if other.nickname == lora.nickname]
        if taken:
            problems.append(
                Problem(
                    f"{key}.nickname",
                    f"{key}.nickname: model.lora.{taken[0]} is called {lora.nickname!r} too; give one of them another",
                )
            )
        found.append(lora)
    if problems:
        raise RecipeError(problems)
    return tuple(found)


def nickname_of(path: str, weight_name: str | None = None) -> str:
    """What a LoRA is called without a nickname: its file, or the repository that holds it. Raises as `plan_loras`."""
    local = _local_file(path, weight_name)
    if local is not None:
        return local.stem
    hub_id, inside = _hub_parts(path, weight_name)
    return file_name(inside or hub_id).removesuffix(SUFFIX)


def named(entries: Sequence[Mapping[str, Any]], loras: Sequence[LoraPlan]) -> list[dict[str, Any]]:
    """The recipe's entries with the nicknames that were chosen."""
    return [{**entry, "nickname": lora.nickname} for entry, lora in zip(entries, loras, strict=True)]


def lora_content(loras: Sequence[LoraPlan]) -> list[dict[str, Any]]:
    """What of the LoRAs decides a picture, for a hash: content, strength and target, not where a file lies."""
    return [
        {
            **({"sha256": lora.sha256} if lora.sha256 is not None else {"hub": _hub_name(lora)}),
            "strength": lora.strength,
            "target": lora.target,
        }
        for lora in loras
    ]


def _hub_name(lora: LoraPlan) -> list[str | None]:
    return [lora.hub_id, lora.weight_name, lora.revision]


def _plan_one(entry: Mapping[str, Any]) -> LoraPlan:
    """One entry. Raises ValueError with what is wrong, WeightsError for a local file that is missing or refused."""
    path, weight_name = entry["path"], entry["weight_name"]
    common = {key: entry[key] for key in ("target", "strength", "min_match")}
    local = _local_file(path, weight_name)
    nickname = entry["nickname"] or nickname_of(path, weight_name)
    if local is not None:
        if entry["revision"] is not None:
            raise ValueError(f"revision is for a hub repository, and {path} is a local file")
        name = path if path.startswith(BUILTIN) else local.name
        digest = _sha256(local)
        return LoraPlan(nickname=nickname, name=name, file=str(local), sha256=digest, **common)
    hub_id, inside = _hub_parts(path, weight_name)
    found = {"hub_id": hub_id, "weight_name": inside, "revision": entry["revision"]}
    return LoraPlan(nickname=nickname, name=path, **found, **common)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"the LoRA {path} cannot be read: {error.strerror}") from None


def _local_file(path: str, weight_name: str | None) -> Path | None:
    """The file on this machine that a path means; None for a name on the hub."""
    if path.startswith(BUILTIN):
        return _builtin_file(path.removeprefix(BUILTIN), weight_name)
    found = Path(path).expanduser()
    if found.is_dir():
        return _in_folder(found, weight_name)
    if found.is_file():
        if weight_name is not None:
            raise ValueError(f"weight_name is for a folder or a hub repository, and {path} is a file")
        if found.suffix != SUFFIX:
            raise WeightsError(f"the LoRA {path} is {_kind(found)}", hint="take the .safetensors file")
        return found.resolve()
    if os.path.isabs(path) or path.startswith(("~", ".")) or HUB.fullmatch(path) is None:
        raise WeightsError(
            f"there is no LoRA at {path}", hint="give a .safetensors file, a folder, a hub id or builtin:NAME"
        )
    return None


def _kind(path: Path) -> str:
    if path.suffix in PICKLES:
        return "a pickle, which can run code when loaded: refused"
    return f"no {SUFFIX} file"


def _builtin_file(name: str, weight_name: str | None) -> Path:
    if weight_name is not None:
        raise ValueError("weight_name is for a folder or a hub repository, and a built-in LoRA is one file")
    if name not in builtin_loras():
        known = ", ".join(BUILTIN + one for one in builtin_loras())
        raise ValueError(f"no built-in LoRA is named {name!r}; there is {known}")
    return Path(str(resources.files("difftool.builtin") / "loras" / f"{name}{SUFFIX}"))


def _in_folder(folder: Path, weight_name: str | None) -> Path:
    """The one LoRA of a folder, or the one that is named."""
    if weight_name is not None:
        found = (folder / weight_name).resolve()
        if not found.is_relative_to(folder.resolve()):
            raise ValueError(f"weight_name {weight_name!r} leaves the folder {folder}")
        if not found.is_file():
            raise WeightsError(f"{folder} has no {weight_name}", hint=f"it has {_listed(folder)}")
        if found.suffix != SUFFIX:
            raise WeightsError(f"the LoRA {found} is {_kind(found)}", hint="take the .safetensors file")
        return found
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        raise ValueError(f"{folder} holds {len(files)} LoRAs; name one of them in weight_name: {_listed(folder)}")
    if not files:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        what = f"; {pickles[0]} is a pickle, which can run code when loaded: refused" if pickles else ""
        raise WeightsError(f"{folder} holds no {SUFFIX} file{what}", hint="give the folder or file of a LoRA")
    return files[0].resolve()


def _listed(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.glob(f"*{SUFFIX}"))) or f"no {SUFFIX} file"


def _hub_parts(path: str, weight_name: str | None) -> tuple[str, str | None]:
    """`org/repo/file.safetensors` -> the repository and the file in it, as `weight_name` says it otherwise."""
    match = HUB.fullmatch(path)
    assert match is not None, path
    hub_id, inside = match.groups()
    if inside is None:
        inside = weight_name
    elif weight_name is not None:
        raise ValueError(f"{path} names a file already; leave weight_name out")
    if inside is not None and not inside.endswith(SUFFIX):
        raise ValueError(f"{inside} is {_kind(Path(inside))}; name a .safetensors file of {hub_id}")
    return hub_id, inside


def _target_fault(target: str, checkpoint: Checkpoint) -> str:
    """Why a model has no such target; an empty text where it has, or where only its files can tell."""
    if target == "all":
        return ""
    component, index = TARGETS[target], checkpoint.configs["index"]
    own = (*checkpoint.pipeline.components, *checkpoint.pipeline.optional)
    if any(isinstance(entry, list) for entry in index.values()):  # a whole model_index.json, not some facts of it
        own = tuple(name for name, entry in index.items() if isinstance(entry, list) and entry[:1] not in ([], [None]))
    if component in own:
        return ""
    known = " or ".join(["all", *(name for name, part in TARGETS.items() if part in own)])
    return f"{checkpoint.model.name} has no {component}; use {known}"

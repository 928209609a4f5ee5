"""Checks a checkpoint folder before anything is allocated: its index, its shards, and every weight file's header."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftool.components.headers import Stored, check_safetensors, refuse_pickle
from difftool.errors import WeightsError

__all__ = [
    "Weights",
    "check_component",
    "check_folder",
    "check_safetensors",
    "find_faults",
    "read_config",
    "read_index",
    "stay_within",
]

LIBRARY_STEM = "diffusion_pytorch_model"  # diffusers' name for a model's weights
STEM = "model"  # transformers' name
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors")
NO_CODE = "difftool runs no code of a checkpoint's own"


@dataclass(frozen=True)
class Weights:
    """The checked weights of one component, by tensor name, in the order of their data."""

    tensors: Mapping[str, Stored]

    @property
    def files(self) -> list[Path]:
        return list(dict.fromkeys(tensor.file for tensor in self.tensors.values()))

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(tensor.size for tensor in self.tensors.values())


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a pipeline folder. Raises WeightsError."""
    path = folder / "model_index.json"
    if not folder.is_dir():
        raise WeightsError(f"no model folder at {folder}", hint="give a diffusers folder, a hub id or builtin:NAME")
    index = _read_mapping(path, f"{folder} has no model_index.json")
    if not isinstance(index.get("_class_name"), str):
        raise WeightsError(f"{path} names no pipeline class (_class_name)")
    return index


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a component folder. Raises WeightsError."""
    return _read_mapping(folder / "config.json", f"{folder} has no config.json")


def _read_mapping(path: Path, missing: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(missing, hint="a diffusers pipeline folder has one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path} does not hold a mapping")
    return content


def check_folder(
    folder: Path, names: Iterable[str], *, elsewhere: Iterable[str] = (), own_code: bool = False
) -> dict[str, Weights]:
    """The weights of those of the named components that have any. Raises WeightsError for the first thing wrong.

    Components `elsewhere` only need their place in the index. `own_code` allows classes that the folder defines.
    """
    index, found = read_index(folder), {}
    for name in names:
        entry = index.get(name)
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(word, str) for word in entry):
            raise WeightsError(f"{folder / 'model_index.json'} lists no {name}, which {index['_class_name']} needs")
        if name in elsewhere:
            continue
        if not own_code:
            _refuse_own_code(folder, name, entry)
        if not (folder / name).is_dir():
            raise WeightsError(f"{folder} has no {name} folder", hint="the download may be incomplete")
        weights = check_component(folder / name, root=folder)
        if weights is not None:
            found[name] = weights
    return found


def find_faults(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, Weights | WeightsError | None]]:
    """Every one of the named components with its weights, None where it has none, or the first fault of it."""
    for name in names:
        try:
            yield name, check_folder(folder, [name]).get(name)
        except WeightsError as error:
            yield name, error


def _refuse_own_code(folder: Path, name: str, entry: Sequence[str]) -> None:
    library, kind = entry
    for place in (folder / name, folder):
        if (place / f"{library}.py").is_file():
            message = f"{folder / 'model_index.json'}: {name} is a {kind} of the folder's own {library}.py"
            raise WeightsError(f"{message}, which is not run", hint=NO_CODE)


def check_component(folder: Path, *, root: Path | None = None) -> Weights | None:
    """The weights of one component folder, whose files stay within `root`; None for a component without weights.

    Raises WeightsError. Files of variants (`model.fp16.safetensors`) are not read, so they are not checked.
    """
    root = folder if root is None else root
    stay_within(folder, root)
    if not (folder / "config.json").is_file():
        return None
    config = read_config(folder)
    stem = LIBRARY_STEM if "_class_name" in config else STEM
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    shards = _shards(folder, stem)
    if index.is_file():
        return _sharded(index, [*([single] if single.is_file() else []), *shards], root)
    if shards:
        named = ", ".join(path.name for path in (*([single] if single.is_file() else []), *shards)[:4])
        raise WeightsError(f"{index} is missing, and {folder} has the shards {named}", hint="download it, or the rest")
    if not single.is_file() and not single.is_symlink():
        _refuse_others(folder, single.name)
    stay_within(single, root)
    return Weights(check_safetensors(single))


def _shards(folder: Path, stem: str) -> list[Path]:
    """Files that are named as shards of these weights."""
    named = ((path, SHARD.fullmatch(path.name)) for path in sorted(folder.glob(f"{stem}-*.safetensors")))
    return [path for path, match in named if match is not None and match["stem"] == stem]


def _refuse_others(folder: Path, wanted: str) -> None:
    """Raises WeightsError: the weights are not there; what is there instead is named."""
    for path in sorted(folder.iterdir()):
        refuse_pickle(path)
    others = ", ".join(sorted(path.name for path in folder.glob("*.safetensors")))
    instead = f"; there is {others}" if others else ""
    raise WeightsError(f"weights are missing: {folder / wanted}{instead}", hint="the download may be incomplete")


def _sharded(index: Path, beside: Sequence[Path], root: Path) -> Weights:
    """The tensors of all shards, each where the index says, and nothing else that looks like them."""
    placed = _weight_map(index)
    files = [index.parent / name for name in dict.fromkeys(placed.values())]
    stale = [path.name for path in beside if path not in files]
    if stale:
        raise WeightsError(
            f"{index.parent} holds {', '.join(stale[:4])}, which {index.name} does not list",
            hint="they are left from another download: remove them, or the index if it is the old one",
        )
    found: dict[str, Stored] = {}
    for file in files:
        stay_within(file, root)
        tensors = check_safetensors(file)
        for name in tensors:
            if placed.get(name) != file.name:
                where = f"in {placed[name]}" if name in placed else "nowhere"
                raise WeightsError(f"{file} holds tensor {name}, which {index.name} places {where}", hint=STALE)
        lacking = [name for name, place in placed.items() if place == file.name and name not in tensors]
        if lacking:
            raise WeightsError(f"{file} lacks tensor {lacking[0]}, which {index.name} places in it", hint=STALE)
        found |= tensors
    return Weights(found)


STALE = "the index and the shards are of different downloads: download both again"


def _weight_map(path: Path) -> Mapping[str, str]:
    mapping = _read_mapping(path, f"{path} is missing").get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(name, str) for name in mapping.values()):
        raise WeightsError(f"{path} is not a shard index: it has no weight_map")
    for name in mapping.values():
        if not name or Path(name).name != name or "\\" in name:
            raise WeightsError(f"{path} points outside its folder: {name}")
        refuse_pickle(path.parent / name)
    return mapping


def stay_within(path: Path, root: Path) -> None:
    """Raises WeightsError for a link that leaves `root`, unless it leads into a repository of a hub cache."""
    target = path.resolve()
    if target.is_relative_to(root.resolve()) or any(_is_hub_repository(parent) for parent in target.parents):
        return
    raise WeightsError(
        f"{path} is a link that leaves {root}: it leads to {target}",
        hint="copy it into the folder, or name it in model.components",
    )


def _is_hub_repository(folder: Path) -> bool:
    """Source: huggingface_hub's cache layout: `models--org--name/{blobs,refs,snapshots}`."""
    return folder.name.startswith("models--") and (folder / "blobs").is_dir()

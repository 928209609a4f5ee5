"""Checks a checkpoint folder before anything is allocated: the index, and every weight file's header."""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from difftool.errors import WeightsError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_HEADER = 100 * 1024 * 1024
DTYPE_BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
    "U16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "F4": 4,
}


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a pipeline folder. Raises WeightsError."""
    path = folder / "model_index.json"
    if not folder.is_dir():
        raise WeightsError(f"no model folder at {folder}", hint="give a diffusers folder, a hub id or builtin:NAME")
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError:
        raise WeightsError(f"{folder} has no model_index.json", hint="a diffusers pipeline folder has one") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise WeightsError(f"{path} names no pipeline class (_class_name)")
    return index


def check_folder(folder: Path, names: Iterable[str]) -> None:
    """Checks the named components of a pipeline folder. Raises WeightsError for the first thing wrong."""
    index = read_index(folder)
    for name in names:
        if not isinstance(index.get(name), list) or not index[name][0]:
            raise WeightsError(f"{folder / 'model_index.json'} lists no {name}, which {index['_class_name']} needs")
        if not (folder / name).is_dir():
            raise WeightsError(f"{folder} has no {name} folder", hint="the download may be incomplete")
        check_component(folder / name)


def check_component(folder: Path) -> None:
    """Checks the weight files of one component folder, if it is one that has weights."""
    config = folder / "config.json"
    if not config.is_file():
        return
    files = sorted(folder.glob("*.safetensors"))
    for shards in folder.glob("*.safetensors.index.json"):
        files = [folder / name for name in sorted(set(_weight_map(shards).values()))]
    if not files:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise WeightsError(
                f"{folder / pickles[0]} is a pickle, which can run code when loaded: refused",
                hint="convert it to .safetensors, or take a repository that has them",
            )
        raise WeightsError(f"{folder} has a config.json but no .safetensors weights")
    for path in files:
        check_safetensors(path)


def _weight_map(path: Path) -> Mapping[str, str]:
    try:
        mapping = json.loads(path.read_text())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError):
        raise WeightsError(f"{path} is not a shard index") from None
    for name in mapping.values():
        if Path(name).name != name:
            raise WeightsError(f"{path} points outside its folder: {name}")
    return mapping


def check_safetensors(path: Path) -> None:
    """Checks that the header is sound and that the file holds exactly the bytes it promises. Raises WeightsError.

    Source: the safetensors format: 8 bytes of little-endian header length, a JSON header, then tensor data.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else None
            if length is None or head[:2] in (b"\x80\x02", b"\x80\x04", b"PK") or length > min(size - 8, MAX_HEADER):
                raise WeightsError(_what_it_is(path, head, size), hint="download the file again")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise WeightsError(f"weights are missing: {path}", hint="the download may be incomplete") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}", hint="download the file again") from None
    end = _data_end(path, header)
    if end != size - 8 - length:
        kind = "truncated" if end > size - 8 - length else "followed by unknown bytes"
        raise WeightsError(
            f"{path} is {kind}: it promises {8 + length + end} bytes and has {size}", hint="download the file again"
        )


def _data_end(path: Path, header: Any) -> int:
    """Checks that the tensors tile the data without gap or overlap; returns where they end."""
    if not isinstance(header, dict):
        raise WeightsError(f"{path} has a header that is not a mapping", hint="download the file again")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    try:
        spans = sorted((*entry["data_offsets"], name) for name, entry in tensors.items())
    except (KeyError, TypeError):
        raise WeightsError(f"{path} has a tensor without dtype, shape or offsets") from None
    position = 0
    for start, stop, name in spans:
        entry = tensors[name]
        bits = DTYPE_BITS.get(entry.get("dtype"), 0)
        for length in entry.get("shape", ()):
            bits *= length
        if start != position or (stop - start) * 8 != bits:
            raise WeightsError(f"{path}: tensor {name} has wrong offsets or size", hint="download the file again")
        position = stop
    return position


def _what_it_is(path: Path, head: bytes, size: int) -> str:
    start = path.read_bytes()[:64] if size < 1024 * 1024 else head
    if head[:2] in (b"\x80\x02", b"\x80\x04", b"PK"):
        return f"{path} is a pickle named .safetensors, which can run code when loaded: refused"
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a git-lfs pointer, not the weights"
    if start.lstrip()[:1] == b"<":
        return f"{path} is an HTML page, not the weights"
    return f"{path} is truncated or not a safetensors file ({size} bytes)"

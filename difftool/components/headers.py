"""The header of one safetensors file: what it holds, and whether the file holds exactly that. Reads no tensor."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftool.errors import WeightsError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
AGAIN = "download the file again"
MAX_HEADER = 100 * 1024 * 1024
DTYPE_BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C64": 64,
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


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: `dtype` is safetensors' name for it, `size` its bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    size: int


def refuse_pickle(path: Path) -> None:
    """Raises WeightsError for a file whose name says that loading it can run code."""
    if path.suffix in PICKLES:
        raise WeightsError(
            f"{path} is a pickle, which can run code when loaded: refused",
            hint="convert it to .safetensors, or take a repository that has them",
        )


def check_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a file whose header is sound and which holds exactly the bytes it promises. Raises WeightsError.

    Source: the safetensors format: 8 bytes of little-endian header length, a JSON header, then tensor data.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if not length or head[:2] in (b"\x80\x02", b"\x80\x04", b"PK") or length > min(size - 8, MAX_HEADER):
                raise WeightsError(_what_it_is(path, head, size), hint=AGAIN)
            header = json.loads(file.read(length), object_pairs_hook=_unique)
    except FileNotFoundError:
        raise WeightsError(f"weights are missing: {path}", hint="the download may be incomplete") from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}", hint=AGAIN) from None
    tensors = _tensors(path, header)
    end = 8 + length + sum(tensor.size for tensor in tensors.values())
    if end != size:
        kind = "truncated" if end > size else "followed by unknown bytes"
        raise WeightsError(f"{path} is {kind}: it promises {end} bytes and has {size}", hint=AGAIN)
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header names something twice")
    return found


def _tensors(path: Path, header: Any) -> dict[str, Stored]:
    """The tensors in the order of their data, which they must tile without gap or overlap."""
    if not isinstance(header, dict):
        raise WeightsError(f"{path} has a header that is not a mapping", hint=AGAIN)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name, entry in entries.items():
        if not _complete(entry):
            raise WeightsError(f"{path}: tensor {name} has no dtype, shape or offsets of the format", hint=AGAIN)
    found, position, before = {}, 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda pair: pair[1]["data_offsets"]):
        bits = DTYPE_BITS[entry["dtype"]]
        for length in entry["shape"]:
            bits *= length
        start, stop = entry["data_offsets"]
        if start != position:
            fault = f"overlaps {before}" if start < position else f"leaves a gap after {before}"
            raise WeightsError(f"{path}: tensor {name} {fault} (wrong offsets)", hint=AGAIN)
        if (stop - start) * 8 != bits:
            what = f"{entry['dtype']} of shape {entry['shape']}"
            raise WeightsError(f"{path}: tensor {name} is {what} and has {stop - start} bytes", hint=AGAIN)
        found[name] = Stored(path, entry["dtype"], tuple(entry["shape"]), stop - start)
        position, before = stop, f"tensor {name}"
    return found


def _complete(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    return lists and entry.get("dtype") in DTYPE_BITS and all(type(n) is int and n >= 0 for n in (*shape, *offsets))


def _what_it_is(path: Path, head: bytes, size: int) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if head[:2] in (b"\x80\x02", b"\x80\x04", b"PK"):
        return f"{path} is a pickle named .safetensors, which can run code when loaded: refused"
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a git-lfs pointer, not the weights"
    if start.lstrip()[:1] == b"<":
        return f"{path} is an HTML page, not the weights"
    return f"{path} is truncated or not a safetensors file ({size} bytes)"

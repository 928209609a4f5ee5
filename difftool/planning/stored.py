"""How many numbers a component's weight files hold, by their headers: what is read is a few kilobytes."""

import json
import math
import re
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"(?P<list>\D+)\.(?P<index>\d+)\.")  # the outermost list that a tensor is in
MAX_HEADER = 100 * 1024 * 1024


def stored_numbers(path: Path) -> int | None:
    """Of a weight file, or of a folder's: those its index names, or all. None where there are none, or one is unsound:
    who loads it says what is wrong.
    """
    files = [path] if path.is_file() else _files(path)
    try:
        counts = [_count(file) for file in files]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None
    return sum(counts) if counts else None


@dataclass(frozen=True)
class Blocks:
    """How many there are, and how many numbers they and the largest of them hold."""

    count: int
    numbers: int
    largest: int


def stored_blocks(path: Path) -> Blocks | None:
    """The blocks of a component by its headers; None without any."""
    files = [path] if path.is_file() else _files(path)
    try:
        shapes = [(name, math.prod(entry["shape"])) for file in files for name, entry in _header(file).items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None
    lists: dict[str, Counter[str]] = {}
    for name, count in shapes:
        if (found := BLOCK.match(name)) is not None:
            lists.setdefault(found["list"], Counter())[found["index"]] += count
    if not lists:
        return None
    counts = [count for blocks in lists.values() for count in blocks.values()]
    return Blocks(len(counts), sum(counts), max(counts))


def _files(folder: Path) -> list[Path]:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if not indices:
        return sorted(folder.glob("*.safetensors"))
    named = json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values()
    return [folder / name for name in sorted(set(named))]


def _count(file: Path) -> int:
    return sum(math.prod(entry["shape"]) for entry in _header(file).values())


def _header(file: Path) -> dict[str, Any]:
    """The entries of its tensors, by name."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > MAX_HEADER:
            raise ValueError(f"{file} has a header of {length} bytes")
        header = json.loads(opened.read(length))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}

"""How many numbers a component's weight files hold, by their headers: what is read is a few kilobytes."""

import json
import math
import struct
from pathlib import Path

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


def _files(folder: Path) -> list[Path]:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if not indices:
        return sorted(folder.glob("*.safetensors"))
    named = json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values()
    return [folder / name for name in sorted(set(named))]


def _count(file: Path) -> int:
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > MAX_HEADER:
            raise ValueError(f"{file} has a header of {length} bytes")
        header = json.loads(opened.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")

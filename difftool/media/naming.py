"""File names from the recipe's template, and their collisions."""

import datetime
import re
from collections.abc import Iterator
from pathlib import Path

from difftool.errors import OutputError
from difftool.planning.plan import Item, Plan

MAX_PART = 80  # characters a placeholder may bring, so that names stay under the usual limit of 255 bytes
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}


def safe(text: str) -> str:
    """Text as part of a file name: letters, digits, `.`, `_`, `-`; other runs become one `_`."""
    name = re.sub(r"[^\w.-]+", "_", text.strip())[:MAX_PART].strip("._-")
    return f"{name}_" if name.lower() in RESERVED else name


def target(plan: Plan, item: Item, run_id: str) -> Path:
    """Where an item's file goes, before collisions: `-o x.png` itself, or the template filled in."""
    folder = Path(plan.output.dir)
    if plan.output.file is not None:
        stem, suffix = Path(plan.output.file).stem, Path(plan.output.file).suffix
        several = len(plan.items) > 1
        return folder / (f"{stem}-{item.index}-{item.output}{suffix}" if several else f"{stem}{suffix}")
    values = {
        "name": safe(plan.name),
        "model": safe(plan.model.name),
        "id": safe(item.id),
        "index": item.index,
        "output": item.output,
        "seed": item.seed,
        "prompt": safe(item.prompt) or "untitled",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y%m%d"),
        "run_id": run_id,
    }
    name = plan.output.name.format(**values)
    return folder / f"{name}.{plan.output.format}"


def candidates(path: Path, collision: str) -> Iterator[Path]:
    """Names to try in turn: the path, then `-1`, `-2`, … under `suffix`. Raises OutputError under `error`."""
    yield path
    if collision == "error":
        raise OutputError(f"{path} exists", hint="use output.on_collision: suffix or overwrite, or another name")
    number = 1
    while True:
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1

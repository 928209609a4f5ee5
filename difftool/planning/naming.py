"""File names from the recipe's template, decided for a whole run before its first item is made."""

import datetime
import itertools
import os
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


def recorded_file(plan: Plan, run_id: str, what: str) -> Path:
    """Where something that was recorded of a run goes: beside its media, `<run id>-<what>`."""
    return Path(plan.output.dir, f"{run_id}-{what}")


def nsys_report(plan: Plan, run_id: str) -> Path:
    """The one report of all ranks; `nsys` gives it this suffix."""
    return recorded_file(plan, run_id, "all_ranks.nsys-rep")


def candidates(path: Path, collision: str) -> Iterator[Path]:
    """Names to try in turn: the path, then `-1`, `-2`, … under `suffix`. Raises OutputError under `error`."""
    yield path
    if collision == "error":
        raise exists_error(path)
    yield from (numbered(path, number) for number in itertools.count(1))


def numbered(path: Path, number: int) -> Path:
    """`x.png`, `x-1.png`, `x-2.png`, …"""
    return path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path


def exists_error(path: Path) -> OutputError:
    return OutputError(f"{path} exists", hint="use output.on_collision: suffix or overwrite, or another name")


def reserve(plan: Plan, run_id: str) -> tuple[str, ...]:
    """A name for every item, as a path from `output.dir`, that is no file yet and no other item's.

    Two items of one run never share a name, `overwrite` or not. Raises OutputError under `on_collision: error`.
    """
    folder, kept = Path(plan.output.dir), plan.output.on_collision == "overwrite"
    mine: set[str] = set()
    counted: dict[str, int] = {}  # where the numbers of a name go on, so that a thousand equal names cost no more
    names = []
    for item in plan.items:
        wanted = target(plan, item, run_id)
        number = 0 if plan.output.on_collision == "error" else counted.get(str(wanted), 0)
        while True:
            path = numbered(wanted, number)
            files = _files(plan, path)
            if mine.isdisjoint(files) and (kept or not any(os.path.lexists(folder / file) for file in files)):
                break
            if plan.output.on_collision == "error":
                raise exists_error(path)
            number += 1
        mine.update(files)
        counted[str(wanted)] = number + 1
        names.append(path.relative_to(folder).as_posix())
    return tuple(names)


def _files(plan: Plan, path: Path) -> list[str]:
    """The files that an item of that name has."""
    return [str(path), *([str(path.with_suffix(".npz"))] if plan.output.return_frames else [])]

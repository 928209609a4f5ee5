"""Reads `sampling.prompts`: a list in the recipe, or a file with a prompt or a mapping on each line."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from difftool.errors import Problem, RecipeError
from difftool.recipe.document import decode
from difftool.recipe.explain import explain, is_misspelt
from difftool.recipe.keys import Shape
from difftool.recipe.nodes import Fault, Mark, Node, from_plain, plain, refuse
from difftool.recipe.sampling import PromptEntry, PromptsFile
from difftool.recipe.tidy import drop_nulls, tidy

MAX_BYTES = 16 * 2**20
MAX_PROMPTS = 100_000
MAX_PROBLEMS = 20  # of one file: a wrong key is usually wrong on every line
ENTRY = Shape(section=PromptEntry)
STDIN = "stdin"


def read_prompts(prompts: Sequence[PromptEntry] | PromptsFile, base: Path | None = None) -> list[dict[str, Any]]:
    """One mapping for each prompt, with only the keys that it sets. `base` is the folder of a relative file name.

    Raises RecipeError with every problem, as `file:line`.
    """
    if isinstance(prompts, PromptsFile):
        return _read_file(prompts.file, base or Path())
    entries = [entry.model_dump(mode="json", by_alias=True, exclude_unset=True) for entry in prompts]
    marked = [(Mark(), f"sampling.prompts.{index}", entry) for index, entry in enumerate(entries)]
    return _with_unique_ids(marked, [])


def _read_file(file: str, base: Path) -> list[dict[str, Any]]:
    path = base / os.path.expanduser(file)
    source = STDIN if file == "-" else os.path.relpath(path) if path.is_absolute() else str(path)
    text = decode(_read_bytes(file, path, source), source)
    is_jsonl = path.suffix == ".jsonl" or (file == "-" and text.lstrip()[:1] == "{")
    if not is_jsonl and file != "-" and path.suffix != ".txt":
        raise refuse(Mark(source), "a prompts file ends in .txt (a prompt a line) or .jsonl (a mapping a line)")
    lines = [(Mark(source, number), line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise refuse(Mark(source), "there is no prompt in it")
    if len(lines) > MAX_PROMPTS:
        raise refuse(Mark(source), f"more than {MAX_PROMPTS} prompts")
    faults: list[Fault] = []
    folder = Path.cwd() if file == "-" else path.absolute().parent
    if is_jsonl:
        return _with_unique_ids(list(_mappings(lines, folder, faults)), faults)
    return [{"prompt": line.strip()} for _, line in lines]


def _read_bytes(file: str, path: Path, source: str) -> bytes:
    try:
        if file == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with path.open("rb") as opened:
                data = opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise refuse(Mark(source), f"cannot be read: {reason}") from None
    if len(data) > MAX_BYTES:
        raise refuse(Mark(source), f"longer than {MAX_BYTES // 2**20} MiB")
    return data


def _mappings(
    lines: Iterable[tuple[Mark, str]], folder: Path, faults: list[Fault]
) -> Iterator[tuple[Mark, str, dict[str, Any]]]:
    for mark, line in lines:
        try:
            node = from_plain(_parse(line), mark)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            faults.append(Fault(mark, "sampling.prompts", f"not a JSON mapping: {reason}"))
            continue
        except RecipeError as error:
            faults += [Fault(mark, "sampling.prompts", problem.message) for problem in error.problems]
            continue
        entry = _entry(node, folder, faults)
        if entry is not None:
            yield mark, "sampling.prompts", entry


def _parse(line: str) -> object:
    """One line of JSON. Raises ValueError, also for a key that is given twice and for NaN."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in pairs]
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise ValueError(f"the key {double!r} is given twice")
        return dict(pairs)

    def finite(name: str) -> object:
        raise ValueError(f"{name} is not a finite number")

    value = json.loads(line, object_pairs_hook=unique, parse_constant=finite)
    if not isinstance(value, dict):
        raise ValueError('write {"prompt": "…"} on each line')
    return value


def _entry(node: Node, folder: Path, faults: list[Fault]) -> dict[str, Any] | None:
    known = drop_nulls(tidy(node, ENTRY, folder, faults), ENTRY)
    try:
        entry = PromptEntry.model_validate(plain(known))
    except ValidationError as error:
        found = explain(error.errors(include_url=False), known)
        faults += [fault for fault in found if not is_misspelt(fault, faults)]
        return None
    return entry.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _with_unique_ids(marked: Sequence[tuple[Mark, str, dict[str, Any]]], faults: list[Fault]) -> list[dict[str, Any]]:
    first: dict[str, str] = {}
    for mark, key, entry in marked:
        identity = entry.get("id")
        place = f"line {mark.line}" if mark.line else key
        if identity in first:
            faults.append(Fault(mark, f"{key}.id", f"id: {identity!r} is already the id of {first[identity]}"))
        elif identity is not None:
            first[identity] = place
    if faults:
        problems = [fault.problem() for fault in sorted(faults, key=lambda fault: fault.mark.line)]
        raise RecipeError(problems[:MAX_PROBLEMS] + _more(problems))
    return [entry for _, _, entry in marked]


def _more(problems: Sequence[Problem]) -> list[Problem]:
    left = len(problems) - MAX_PROBLEMS
    return [Problem("sampling.prompts", f"{left} more problems in this file")] if left > 0 else []

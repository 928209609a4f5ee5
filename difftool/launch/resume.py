"""Taking up a run that did not end: which run, whether it is the same work, and what of it is left to make."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from difftool.errors import RecipeError
from difftool.files import output_error, remove_temporaries
from difftool.launch.journal import Entry, Journal, MadeFile, workload, workload_hash
from difftool.launch.records import LOG_FILE, PERF_FILE, PLAN_FILE, RECORDS, read_todo, write_records
from difftool.planning.plan import Item, Plan
from difftool.planning.todo import Task, Todo
from difftool.planning.tree import leaves

SHOWN_DIFFERENCES = 8
SAME_RECIPE = "resume with the same recipe and flags, or leave --resume out"


def find_run(folder: Path, run_id: str | None) -> Path:
    """The records of the run, or of the last one, whose media are in `folder`. Raises RecipeError."""
    runs = sorted(plan.parent for plan in (folder / RECORDS).glob(f"*/{PLAN_FILE}"))
    if not runs:
        raise RecipeError(f"there is no run to resume in {folder}", hint="leave --resume out to start one")
    found = runs[-1] if run_id is None else next((run for run in runs if run.name == run_id), None)
    if found is None:
        last = ", ".join(run.name for run in runs[-3:])
        raise RecipeError(f"there is no run {run_id} in {folder}", hint=f"the last ones there: {last}")
    return found


def recorded_plan(records: Path) -> Plan:
    """The plan of a run. Raises RecipeError for one that another version of difftool wrote."""
    try:
        return Plan.model_validate_json((records / PLAN_FILE).read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"run {records.name} cannot be read: its plan has {where}: {first['msg']}"
        raise RecipeError(message, hint="it may be of another version of difftool; start a new run") from None


def check_same_work(plan: Plan, recorded: Plan, whose: str, *, hint: str = SAME_RECIPE) -> None:
    """Raises RecipeError, with what differs, unless both plans make the same items under the same names.

    How they are made may differ: device, threads, ranks, timeouts, repeats.
    """
    found = list(_differences(plan, recorded))
    if found:
        shown = found[:SHOWN_DIFFERENCES]
        more = [f"and {len(found) - len(shown)} more"] if len(found) > len(shown) else []
        lines = "".join(f"\n  | {line}" for line in [*shown, *more])
        raise RecipeError(f"this recipe is not that of {whose}{lines}", hint=hint)


def take_up(plan: Plan, records: Path) -> Todo:
    """Makes the records ready for another start of the run, which makes only what is missing or damaged.

    Raises RecipeError for a run that is going on, OutputError where the records cannot be written.
    """
    with Journal(records, plan) as journal:
        remove_temporaries(Path(plan.output.dir), since=records / PLAN_FILE)
        before = read_todo(records)
        names = [task.name for task in before.tasks]
        tasks = (
            _task(plan, item, names[position], journal.entries.get(position))
            for position, item in enumerate(plan.items)
        )
        todo = Todo(tasks=tuple(tasks), resumed_from=records.name, raw_dir=before.raw_dir)
        _set_aside(records / PERF_FILE)
        _set_aside(records / LOG_FILE)
        write_records(records, plan, todo)
    return todo


def is_whole(folder: Path, file: MadeFile) -> bool:
    """Whether the file is there with the bytes that were written."""
    path = folder / file.path
    try:
        if path.stat().st_size != file.size:
            return False
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
    except OSError:
        return False


def _task(plan: Plan, item: Item, name: str, entry: Entry | None) -> Task:
    """What is left of one item. A file that is in the journal is this run's own, and may be replaced."""
    if entry is None or entry.status == "failed":
        return Task(name=name, make=True, replace=False)
    own = entry.outputs[0].path if entry.outputs else name
    same = entry.workload == workload_hash(plan, item)
    whole = same and all(is_whole(Path(plan.output.dir), file) for file in entry.outputs)
    return Task(name=own, make=not whole, replace=not whole)


def _set_aside(file: Path) -> None:
    """`perf.json` of the start before becomes `perf.1.json`, then `perf.2.json`."""
    number = 1
    while (kept := file.with_name(f"{file.stem}.{number}{file.suffix}")).exists():
        number += 1
    try:
        file.rename(kept)
    except FileNotFoundError:
        return
    except OSError as error:
        raise output_error(file, error) from error


def _differences(plan: Plan, recorded: Plan) -> Iterator[str]:
    if len(plan.items) != len(recorded.items):
        yield f"it makes {len(plan.items)} items, the run {len(recorded.items)}"
        return
    yield from _changes("output", plan.output.model_dump(), recorded.output.model_dump(), ignored=("output.dir",))
    for item, other in zip(plan.items, recorded.items, strict=True):
        changes = _changes("", workload(plan, item), workload(recorded, other))
        yield from (f"item {item.id}: {line}" for line in changes)


def _changes(
    section: str, now: Mapping[str, Any], then: Mapping[str, Any], ignored: tuple[str, ...] = ()
) -> Iterator[str]:
    prefix = f"{section}." if section else ""
    new, old = dict(leaves(now, prefix)), dict(leaves(then, prefix))
    for key in sorted({*new, *old} - {*ignored}):
        if new.get(key) != old.get(key):
            yield f"{key} is {new.get(key)!r}, was {old.get(key)!r}"

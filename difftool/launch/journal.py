"""The journal of a run: a line for every finished or failed item, written when it is on the disk, by one process.

Whoever has the journal open holds its lock, and ranks hold one on their plan: a run with a lock taken is going on.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pydantic import ValidationError

from difftool.errors import RecipeError
from difftool.files import output_error
from difftool.launch.events import Error, Event, ItemFailed, ItemFinished, Output
from difftool.launch.records import PLAN_FILE
from difftool.planning.plan import Frozen, Item, Plan

JOURNAL_FILE = "journal.jsonl"
LOCK_WAIT_S = 10.0  # a killed worker takes a moment to give its memory back
POLL_S = 0.1
WORKLOAD = ("model", "stages", "cache", "sampling")  # what decides the pixels; degrees only change how they are made


class MadeFile(Frozen):
    """One file of an item; `path` is relative to `output.dir`, `size` in bytes."""

    path: str
    sha256: str
    size: int


class ItemError(Frozen):
    """Why an item failed."""

    kind: str
    message: str
    stage: str | None


class Entry(Frozen):
    """One line. `item` is the position in the plan, `index` that of the prompt, `output` which of its outputs it is."""

    item: int
    index: int
    output: int
    id: str
    status: Literal["done", "failed"]
    workload: str
    outputs: tuple[MadeFile, ...] = ()
    error: ItemError | None = None


def workload(plan: Plan, item: Item) -> dict[str, Any]:
    """All that decides an item's pixels; names and places do not."""
    recipe = plan.item_recipe(item)
    pictures = {key: [plan.pictures[path] for path in paths] for key, paths in item.pictures.items()}
    return {key: recipe[key] for key in WORKLOAD} | ({"pictures": pictures} if pictures else {})


def workload_hash(plan: Plan, item: Item) -> str:
    content = json.dumps(workload(plan, item), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


class Journal:
    """The journal of the run in `records`, which makes `plan`, as a context manager.

    `entries` holds the last line of every item from earlier starts. Raises RecipeError for a run that is going on and
    OutputError where the journal cannot be written.
    """

    def __init__(self, records: Path, plan: Plan):
        self._path = records / JOURNAL_FILE
        self._plan = plan
        self._made: dict[int, list[MadeFile]] = {}
        self._done: set[int] = set()
        self.entries: dict[int, Entry] = {}
        self.descriptor = -1

    def __enter__(self) -> "Journal":
        try:
            self.descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise output_error(self._path, error) from error
        try:
            _lock(self.descriptor, self._path.parent.name)
            _wait_for_ranks(self._path.parent)
            self.entries = {entry.item: entry for entry in _read(self._path, self.descriptor)}
        except BaseException:
            os.close(self.descriptor)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)  # the lock ends when the worker, which inherits the descriptor, has ended too

    def take(self, event: Event) -> None:
        """Writes the line that an event completes, and returns when it is on the disk."""
        if isinstance(event, Output):
            path = os.path.relpath(event.path, self._plan.output.dir)
            self._made.setdefault(event.item, []).append(MadeFile(path=path, sha256=event.sha256, size=event.size))
        elif isinstance(event, ItemFinished) and event.item not in self._done:  # a repeat writes nothing new
            self._done.add(event.item)
            if self._was_done(event.item) and event.item not in self._made:
                return
            self._write(self._entry(event.item, "done", tuple(self._made.pop(event.item, ())), None))
        elif isinstance(event, ItemFailed | Error) and event.item is not None and event.item not in self._done:
            error = ItemError(kind=event.kind, message=event.message, stage=event.stage)
            self._write(self._entry(event.item, "failed", tuple(self._made.pop(event.item, ())), error))

    def _was_done(self, position: int) -> bool:
        """Whether an earlier start made it, of the same work."""
        entry = self.entries.get(position)
        if entry is None or entry.status == "failed":
            return False
        return entry.workload == workload_hash(self._plan, self._plan.items[position])

    def _entry(
        self, position: int, status: Literal["done", "failed"], outputs: tuple[MadeFile, ...], error: ItemError | None
    ) -> Entry:
        item = self._plan.items[position]
        return Entry(
            item=position,
            index=item.index,
            output=item.output,
            id=item.id,
            status=status,
            workload=workload_hash(self._plan, item),
            outputs=outputs,
            error=error,
        )

    def _write(self, entry: Entry) -> None:
        left = entry.model_dump_json(exclude_none=True).encode() + b"\n"
        try:
            while left:  # a full disk takes a part, and refuses the rest
                left = left[os.write(self.descriptor, left) :]
            os.fsync(self.descriptor)
        except OSError as error:
            raise output_error(self._path, error) from error


def _lock(descriptor: int, run_id: str) -> None:
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RecipeError(f"run {run_id} is still going on", hint="wait for it, or end it first") from None
            time.sleep(POLL_S)


def _wait_for_ranks(records: Path) -> None:
    """Returns when no rank makes the plan. Many ranks have an agent between them and the launcher, which leaves them no
    descriptor: each locks the plan that it makes.
    """
    try:
        plan = os.open(records / PLAN_FILE, os.O_RDWR)
    except FileNotFoundError:
        return
    except OSError as error:
        raise output_error(records / PLAN_FILE, error) from error
    try:
        _lock(plan, records.name)
    finally:
        os.close(plan)


def _read(path: Path, descriptor: int) -> Iterator[Entry]:
    """Every whole line, in order. What a death cut off is cut away; a line that is no entry counts for nothing."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.ftruncate(descriptor, whole)
    for line in data[:whole].splitlines():
        try:
            yield Entry.model_validate_json(line)
        except ValidationError:  # damaged: its item is made again
            continue

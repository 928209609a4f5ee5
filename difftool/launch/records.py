"""The folder of one run's records, `<output.dir>/.difftool/<run id>/`: the resolved recipe, the plan, what to make."""

import re
import secrets
from datetime import UTC, datetime
from pathlib import Path

from difftool.files import make_folder, write_atomic
from difftool.planning.naming import reserve
from difftool.planning.plan import Plan
from difftool.planning.render import render_resolved
from difftool.planning.todo import TODO_FILE, Task, Todo

RECORDS = ".difftool"
PLAN_FILE = "plan.json"
RECIPE_FILE = "recipe.yaml"
LOG_FILE = "worker.log"
PERF_FILE = "perf.json"  # the worker writes it
RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}")


def open_records(plan: Plan, *, raw_dir: str | None = None) -> Path:
    """The records of a new run, which makes every item. Raises OutputError where they cannot be written.

    `raw_dir`: where the raw values of every item go too.
    """
    folder = Path(plan.output.dir) / RECORDS / new_run_id()
    names = reserve(plan, folder.name)
    make_folder(folder)
    tasks = tuple(Task(name=name, make=True, replace=False) for name in names)
    write_records(folder, plan, Todo(tasks=tasks, resumed_from=None, raw_dir=raw_dir))
    return folder


def write_records(folder: Path, plan: Plan, todo: Todo) -> None:
    """Writes `recipe.yaml`, `todo.json` and, last, `plan.json`: a folder that holds it is a run."""
    write_atomic(folder / RECIPE_FILE, render_resolved(plan, origins=False).encode())
    write_atomic(folder / TODO_FILE, todo.model_dump_json(indent=1).encode())
    write_atomic(folder / PLAN_FILE, plan.model_dump_json(by_alias=True, indent=2).encode())


def read_todo(folder: Path) -> Todo:
    return Todo.model_validate_json((folder / TODO_FILE).read_bytes())


def new_run_id() -> str:
    """UTC time to the second and six random digits: `20261121T110559Z-9f3a1c` sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"

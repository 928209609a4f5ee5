"""The folder of one run's records: `<output.dir>/.difftool/<run id>/` with the resolved recipe and the plan."""

import secrets
from datetime import UTC, datetime
from pathlib import Path

from difftool.files import make_folder, write_atomic
from difftool.planning.plan import Plan
from difftool.planning.render import render_resolved

RECORDS = ".difftool"
PLAN_FILE = "plan.json"
RECIPE_FILE = "recipe.yaml"
LOG_FILE = "worker.log"
PERF_FILE = "perf.json"  # the worker writes it


def open_records(plan: Plan) -> Path:
    """Makes the folder and writes `recipe.yaml` and `plan.json`. Raises OutputError where that is not possible."""
    folder = Path(plan.output.dir) / RECORDS / new_run_id()
    make_folder(folder)
    write_atomic(folder / RECIPE_FILE, render_resolved(plan, origins=False).encode())
    write_atomic(folder / PLAN_FILE, plan.model_dump_json(by_alias=True, indent=2).encode())
    return folder


def new_run_id() -> str:
    """UTC time to the second and six random digits: `20261121T110559Z-9f3a1c` sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"

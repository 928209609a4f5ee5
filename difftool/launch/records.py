"""The folder of one run's records: `<output.dir>/.difftool/<run id>/` with the resolved recipe and the plan."""

import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from difftool.files import make_folder, write_atomic
from difftool.planning.plan import Plan

RECORDS = ".difftool"
PLAN_FILE = "plan.json"
RECIPE_FILE = "recipe.yaml"
LOG_FILE = "worker.log"
PERF_FILE = "perf.json"  # the worker writes it


class _RecipeDumper(yaml.SafeDumper):
    """Quotes texts that YAML 1.2 would read as numbers and YAML 1.1, which PyYAML speaks, would not: `1e-3`, `0o7`."""


_RecipeDumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^0o[0-7]+$"),
    list("-+.0123456789"),
)


def open_records(plan: Plan) -> Path:
    """Makes the folder and writes `recipe.yaml` and `plan.json`. Raises OutputError where that is not possible."""
    folder = Path(plan.output.dir) / RECORDS / new_run_id()
    make_folder(folder)
    write_atomic(folder / RECIPE_FILE, recipe_text(plan).encode())
    write_atomic(folder / PLAN_FILE, plan.model_dump_json(by_alias=True, indent=2).encode())
    return folder


def new_run_id() -> str:
    """UTC time to the second and six random digits: `20261121T110559Z-9f3a1c` sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def recipe_text(plan: Plan) -> str:
    """The resolved recipe as YAML that loads to the same plan."""
    recipe: dict[str, Any] = plan.model_dump(mode="json")["recipe"]
    complete = {"schema": "difftool/v1", **recipe}
    text: str = yaml.dump(complete, Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True, width=120)
    return text

"""Helpers for tests that run the whole command on a tiny checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORDS = ["journal.jsonl", "perf.json", "plan.json", "recipe.yaml", "todo.json", "worker.log"]  # of a finished run


class Quiet:
    """Progress of a run in this process that nobody hears."""

    stage = item = None
    leads = True

    def __call__(self, event, **values):
        pass

    def attempt(self, make, *, keep_going):
        make()


def difftool(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m difftool …` as a user would."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "difftool", *map(str, arguments)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
    )


def read_json(path: Path):
    return json.loads(path.read_text())

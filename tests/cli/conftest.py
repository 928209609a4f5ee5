"""The command line in process, with a worker that needs no model."""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

STANDIN = Path(__file__).parents[1] / "launch" / "standin_worker.py"


@dataclass(frozen=True)
class Answer:
    """What a command line printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def difftool(capsys, monkeypatch, tmp_path) -> Callable[..., Answer]:
    """Runs `difftool ARGUMENTS…` in an empty folder, 80 columns wide and without a terminal."""
    from difftool.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: str) -> Answer:
        code = main(arguments)
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return run


@pytest.fixture
def worker(monkeypatch) -> Callable[[str], None]:
    """Makes the next run use the stand-in worker, behaving as told."""
    from difftool import launch

    def use(behaviour: str) -> None:
        command = (sys.executable, str(STANDIN), behaviour)
        monkeypatch.setattr(launch, "run", functools.partial(RUN, worker=command))

    RUN = launch.run
    return use

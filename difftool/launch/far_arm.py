"""An arm of another environment: its own difftool plans and runs it, told turn by turn over a pipe.

Each line is a JSON object. Told: first the arm (`name`, `recipe`, `overrides`, `save_output`), then turns (`repeat`,
`warmup`). Answered: `{"event": "ready", "records": …}`, the events of a turn, `{"event": "made", "perf": …}`; an
`error` is the last word. This page is both ends, each in its own version of difftool: what it says may only grow.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from difftool.errors import DifftoolError, PlanError, RecipeError, WorkerCrashed
from difftool.launch.arm import Hear, LocalArm, Turn, plan_arm
from difftool.launch.events import Error, Event, parse_event
from difftool.launch.failure import describe_status, failure
from difftool.launch.records import LOG_FILE, PERF_FILE
from difftool.launch.references import make_references, references_missing
from difftool.launch.supervise import run
from difftool.planning.arms import ArmSpec
from difftool.recipe.load import Override
from difftool.report.measured import read_measured
from difftool.report.perf import PerfDump, read_perf

END_S = 10.0  # for the other side to end its worker


class FarArm:
    """The near end: an arm that another interpreter's difftool runs, in a process of its own."""

    def __init__(self, spec: ArmSpec, *, save_output: bool):
        """Raises PlanError where that environment has no difftool that can, and what its planning ends with."""
        self.name = spec.name
        self._spec = spec
        self._save_output = save_output
        self._process: subprocess.Popen[str] | None = None
        self.records = self._start()

    def make(self, turn: Turn, hear: Hear) -> PerfDump:
        if self._process is None:
            self.records = self._start()
        self._say({"repeat": turn.repeat, "warmup": turn.warmup})
        for answer in self._answers():
            if answer["event"] == "made":
                read_measured(Path(answer["perf"]))  # refuses, with the reason, what this version cannot read
                return read_perf(Path(answer["perf"]))
            event = _known(answer)
            if event is not None:
                hear(event)
        raise self._lost()

    def rest(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.communicate(timeout=END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()

    def _start(self) -> Path:
        """The records of the run, once the other side has planned it."""
        assert self._spec.python is not None
        # another environment's difftool, and not the one of the current folder or of PYTHONPATH
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [self._spec.python, "-m", "difftool.launch.far_arm"]
        self._process = subprocess.Popen(
            command,
            env={**environment, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this side, which ends the other one
        )
        overrides = [[o.key, o.value, o.origin, o.parse] for o in self._spec.overrides]
        told = {"name": self.name, "recipe": self._spec.recipe, "overrides": overrides}
        try:
            self._say({**told, "save_output": self._save_output})
            ready = next((answer for answer in self._answers() if answer["event"] == "ready"), None)
            if ready is None:
                hint = f"install it there, in a version that can: {self._spec.python} -m pip install difftool"
                raise PlanError(f"arm {self.name}: {self._spec.python} has no difftool that takes part", hint=hint)
            return Path(ready["records"])
        except BaseException:
            self.rest()
            raise

    def _say(self, words: Mapping[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it answers, or its end, says why
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()

    def _answers(self) -> Iterator[dict[str, Any]]:
        """Until it says no more. Raises the failure that it tells."""
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            if answer["event"] == "error":
                raise failure(Error.model_validate(answer), Path(answer.get("log") or LOG_FILE))
            yield answer

    def _lost(self) -> DifftoolError:
        assert self._process is not None
        return WorkerCrashed(f"{self._spec.python} {describe_status(self._process.wait())}")


def _known(answer: Mapping[str, Any]) -> Event | None:
    """The event; None for one of another version, which this one does not know."""
    try:
        return parse_event(json.dumps(answer))
    except ValueError:
        return None


def serve() -> int:
    """The far end: plans the arm, and makes turns until stdin ends; the exit code."""
    arm = None

    def say(**words: Any) -> None:
        sys.stdout.write(json.dumps(words) + "\n")
        sys.stdout.flush()

    def hear(event: Event) -> None:
        say(**event.model_dump(mode="json", exclude_none=True))

    try:
        for line in sys.stdin:
            told = json.loads(line)
            if arm is None:
                arm = _planned(told)
                say(event="ready", records=str(arm.records))
            else:
                arm.make(Turn(repeat=told["repeat"], warmup=told["warmup"]), hear)
                say(event="made", perf=str(arm.records / PERF_FILE))
    except DifftoolError as error:
        problems = [vars(problem) for problem in error.problems] if isinstance(error, RecipeError) else None
        log = str(arm.records / LOG_FILE) if arm is not None else None
        told = {"message": error.message, "hint": error.hint, "problems": problems, "log": log}
        say(event="error", kind=type(error).__name__, exit_code=error.exit_code, **told)
        return error.exit_code
    finally:
        if arm is not None:
            arm.rest()
    return 0


def _planned(told: Mapping[str, Any]) -> LocalArm:
    overrides = tuple(Override(*entry) for entry in told["overrides"])
    spec = ArmSpec(told["name"], told["recipe"], overrides)
    plan = plan_arm(spec, save_output=told["save_output"])
    if references_missing(plan):
        make_references(plan, run, on_event=lambda event: None)
    return LocalArm(spec.name, plan)


if __name__ == "__main__":
    sys.exit(serve())

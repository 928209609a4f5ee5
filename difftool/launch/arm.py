"""An arm of a race: one recipe, a worker that keeps its model loaded, and its dump, made a turn at a time."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from difftool.errors import RecipeError
from difftool.files import write_atomic
from difftool.launch.child import WORKER
from difftool.launch.events import Event
from difftool.launch.living import LivingWorker
from difftool.launch.records import PERF_FILE, open_records, read_todo
from difftool.launch.signals import SignalWatch
from difftool.launch.supervise import supervise
from difftool.planning.arms import BASE, ArmSpec
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.plan import Plan
from difftool.planning.todo import TODO_FILE
from difftool.recipe.load import Override, lay_over, load_recipe
from difftool.recipe.sampling import PromptsFile
from difftool.report.perf import PerfDump, read_perf

Hear = Callable[[Event], None]


@dataclass(frozen=True)
class Turn:
    """What one start makes: `repeat` of every item, after `warmup` runs that are not measured."""

    repeat: int
    warmup: int = 0


class Arm(Protocol):
    """One side of a race. `records` is the folder of its run; its dump, of all turns in the end, lies there."""

    name: str
    records: Path

    def make(self, turn: Turn, hear: Hear) -> PerfDump:
        """Makes one turn, and is loaded from then on. Raises what a run can end with."""

    def rest(self) -> None:
        """Ends its worker, which gives its memory back; the next turn starts another."""


class LocalArm:
    """An arm of this environment."""

    def __init__(self, name: str, plan: Plan, *, verbose: bool = False, worker: Sequence[str] = WORKER):
        self.name = name
        self.plan = plan
        self.records = open_records(plan)
        self._todo = read_todo(self.records)
        self._worker = LivingWorker(worker)
        self._verbose = verbose

    def make(self, turn: Turn, hear: Hear) -> PerfDump:
        told = {"repeats": (turn.repeat,), "warmup": turn.warmup}
        write_atomic(self.records / TODO_FILE, self._todo.model_copy(update=told).model_dump_json(indent=1).encode())
        watch = SignalWatch()
        try:
            supervise(
                self.plan, self.records, hire=self._worker.hire, watch=watch, on_event=hear, verbose=self._verbose
            )
        finally:
            if watch.received and watch.received[0] != signal.SIGINT:
                self.rest()
        if turn.repeat == 0:  # made again, after a rest: these files are its own
            tasks = tuple(task.model_copy(update={"replace": True}) for task in self._todo.tasks)
            self._todo = self._todo.model_copy(update={"tasks": tasks})
        return read_perf(self.records / PERF_FILE)

    def rest(self) -> None:
        self._worker.stop()


def plan_arm(spec: ArmSpec, *, save_output: bool) -> Plan:
    """The plan of an arm, which takes no file of the others' for its own. Raises RecipeError with every problem."""
    loaded = load_recipe(spec.recipe, spec.overrides)
    prompts = loaded.recipe.sampling.prompts
    if isinstance(prompts, PromptsFile) and prompts.file == "-":
        raise RecipeError("sampling.prompts.file: arms that take turns cannot read standard input; name a file")
    if spec.name != BASE:
        loaded = lay_over(loaded, [*spec.overrides, Override("output.on_collision", "suffix", "bench")])
    return make_plan(loaded, run=RunOptions(save_output=save_output))

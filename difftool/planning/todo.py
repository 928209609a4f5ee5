"""What one start of a run has to make: for every item of the plan its file name, and whether it is still to be made."""

from pathlib import Path

from difftool.planning.plan import Frozen

TODO_FILE = "todo.json"  # beside plan.json


class Task(Frozen):
    """One item. `name` is the path of its file from `output.dir`, decided once, before the first item is made.

    `replace`: a file of that name belongs to this item, and is damaged or of another workload.
    """

    name: str
    make: bool
    replace: bool


class Todo(Frozen):
    """The tasks in the order of the plan's items. `resumed_from` is the run that an earlier start left unfinished.

    `raw_dir` is where the raw values of every item go, beside its media: for whoever started the run to read back.
    This start makes `repeats` of the plan, after `warmup` runs that are not measured; None: as planned.
    """

    tasks: tuple[Task, ...]
    resumed_from: str | None
    raw_dir: str | None = None
    repeats: tuple[int, ...] | None = None
    warmup: int | None = None

    def positions(self) -> list[int]:
        """Where in the plan the items stand that are to be made."""
        return [position for position, task in enumerate(self.tasks) if task.make]


def raw_file(raw_dir: str, position: int) -> Path:
    """Where the raw values of one item lie."""
    return Path(raw_dir) / f"{position}.npz"

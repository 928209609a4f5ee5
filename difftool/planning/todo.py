"""What one start of a run has to make: for every item of the plan its file name, and whether it is still to be made."""

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
    """The tasks in the order of the plan's items. `resumed_from` is the run that an earlier start left unfinished."""

    tasks: tuple[Task, ...]
    resumed_from: str | None

    def positions(self) -> list[int]:
        """Where in the plan the items stand that are to be made."""
        return [position for position, task in enumerate(self.tasks) if task.make]

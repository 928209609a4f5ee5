"""The exception tree. Every error a user can cause says what is wrong, the value, and the way out (`hint`)."""

from collections.abc import Sequence
from dataclasses import dataclass


class DifftoolError(Exception):
    """Base of all errors shown without a traceback. `exit_code` is what the command ends with."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe. `key` is dotted (`stages.denoising.precision`); `where` is `file:line:col`."""

    key: str
    message: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.where}: error: {self.message}" if self.where else f"error: {self.message}"


class RecipeError(DifftoolError):
    """The recipe or the command line is wrong: nothing was launched. Holds every problem found, in file order.

    `str` has a line for each as it is shown, with `error:` in it; `message` has them without that word.
    """

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | str, *, hint: str | None = None):
        self.problems = (Problem("", problems),) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems), hint=hint)
        self.message = "\n".join(f"{p.where}: {p.message}" if p.where else p.message for p in self.problems)


class PlanError(DifftoolError):
    """The plan is right but cannot run on this machine."""

    exit_code = 3


class WeightsError(DifftoolError):
    """Weights are missing, corrupt or refused."""

    exit_code = 4


class OutOfMemoryError(DifftoolError):
    """The device or the host ran out of memory."""

    exit_code = 5


class WorkerCrashed(DifftoolError):
    """A worker process died without reporting an error of its own."""

    exit_code = 6


class Stalled(DifftoolError):
    """No worker made progress within `launch.stall_timeout_s`."""

    exit_code = 7


class ItemsFailed(DifftoolError):
    """Some items failed and the others are done."""

    exit_code = 8


class OutputError(DifftoolError):
    """Media or records cannot be written."""

    exit_code = 9


class QualityFailed(DifftoolError):
    """The outputs are made, and not what the recipe's tier asks for, or no pictures at all."""

    exit_code = 11


class Interrupted(DifftoolError):
    """The user pressed Ctrl-C (130) or the process was asked to end (143)."""

    exit_code = 130


class CompositionError(DifftoolError):
    """A pipeline's stages do not fit together, or do not fit its checkpoint."""

    exit_code = 3

"""How a failure is told: what is wrong, the way out, and the exit code."""

import os
import signal
import sys
import tempfile
import traceback
from typing import TYPE_CHECKING

from difftool.cli.usage import usage_error
from difftool.errors import DifftoolError, Interrupted, RecipeError

if TYPE_CHECKING:
    from typer import TyperException

PIPE_CLOSED = 128 + signal.SIGPIPE


def tell(error: DifftoolError, *, as_json: bool) -> int:
    """Prints the error on stderr and, for `--json`, as an event on stdout; the exit code."""
    lines = [str(error) if isinstance(error, RecipeError) else f"error: {error.message}"]
    if error.hint:
        lines.append(f"hint: {error.hint}")
    if isinstance(error, RecipeError) and error.__cause__ is None:
        count = len(error.problems)
        lines.append(f"{count} error{'s' * (count != 1)}; nothing was launched")
    print(*lines, sep="\n", file=sys.stderr)
    if as_json:
        print(_event(error), flush=True)
    return error.exit_code


def tell_usage(error: "TyperException", *, as_json: bool) -> int:
    """A command line that Typer refuses."""
    return tell(usage_error(error), as_json=as_json)


def tell_bug(error: Exception, *, as_json: bool) -> int:
    """An exception nobody foresaw: one line, and a file with the traceback."""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="difftool-", suffix=".traceback.txt", delete=False) as file:
            file.write(text)
        hint = f"this is a bug; please report it with {file.name}"
    except OSError:
        hint = f"this is a bug; please report it with this traceback:\n{text}"
    message = traceback.format_exception_only(error)[-1].strip()
    return tell(DifftoolError(f"internal error: {message}", hint=hint), as_json=as_json)


def tell_interrupted(*, as_json: bool) -> int:
    """Ctrl-C before or after the worker ran; during its run, `launch` answers it."""
    return tell(Interrupted("interrupted"), as_json=as_json)


def silence_stdout() -> None:
    """Nobody reads stdout any more: what Python flushes at exit goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


def _event(error: DifftoolError) -> str:
    """The error as the last event of the stream; the worker's own where it reported one."""
    from difftool.launch.events import Error

    event = getattr(error.__cause__, "event", None) or Error(
        kind=type(error).__name__,
        exit_code=error.exit_code,
        message=error.message,
        hint=error.hint,
        problems=list(error.problems) if isinstance(error, RecipeError) else None,
    )
    text: str = event.model_dump_json(exclude_none=True)
    return text

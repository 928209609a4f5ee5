"""The command `difftool`: its commands, and the one place where every error ends.

A command is one file here with `register(app)`, named in COMMANDS, which is also the order of the help.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from difftool.cli import (
    bench,
    calibrate,
    compare_perf,
    completion,
    doctor,
    failures,
    generate,
    history,
    inspect,
    models,
    plan,
    profile,
    recipes,
    schema,
)
from difftool.cli.panels import PanelGroup
from difftool.cli.world import take_part
from difftool.errors import DifftoolError

if TYPE_CHECKING:
    from difftool.launch.meeting import Meeting

PROGRAM = "difftool"
COMPLETION = "_DIFFTOOL_COMPLETE"  # set by the shell when it asks for completions
COMMANDS = (generate, plan, profile, bench, calibrate, inspect, compare_perf, schema, doctor, history, models, recipes)

app = typer.Typer(
    name=PROGRAM,
    cls=PanelGroup,
    help="Run, plan and measure diffusion pipelines described by recipes.",
    epilog="The shortest run:\n\ndifftool generate builtin:shapes-image -p 'a red circle' -o red.png",
    rich_markup_mode=None,
    no_args_is_help=False,
)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {version()}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def application(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for command in COMMANDS:
    command.register(app)


def version() -> str:
    """The installed version; a checkout that is not installed has none."""
    from importlib import metadata  # takes as long as all the rest of the help

    try:
        return metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code. Nothing passes this but SystemExit of the shell's completion."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    return take_part(given, partial(_run, given, as_json), partial(failures.tell, as_json=as_json))


def _run(given: list[str], as_json: bool, meeting: "Meeting | None") -> int:
    try:
        return _dispatch(given, meeting)
    except typer.Exit as leave:
        return leave.exit_code
    except typer.TyperException as error:
        return failures.tell_usage(error, as_json=as_json)
    except DifftoolError as error:
        return failures.tell(error, as_json=as_json)
    except KeyboardInterrupt:
        return failures.tell_interrupted(as_json=as_json)
    except BrokenPipeError:
        failures.silence_stdout()
        return failures.PIPE_CLOSED
    except Exception as error:
        return failures.tell_bug(error, as_json=as_json)


def _dispatch(arguments: list[str], meeting: "Meeting | None") -> int:
    group = typer.main.get_command(app)
    if COMPLETION in os.environ:
        completion.join_split_word(os.environ)
        group.main(arguments, prog_name=PROGRAM)
    with group.make_context(PROGRAM, arguments, obj=meeting) as context:
        group.invoke(context)
    sys.stdout.flush()  # a closed pipe shows here, not in the interpreter's exit
    return 0

"""Turns what Typer says of a wrong command line into a fact and a way out."""

import re
from typing import TYPE_CHECKING, Any

from difftool.cli import later
from difftool.errors import DifftoolError

if TYPE_CHECKING:
    from typer import TyperException

NO_COMMAND = re.compile(r"No such command '(?P<name>[\w-]+)'")


class UsageError(DifftoolError):
    """The command line is wrong: nothing was launched."""

    exit_code = 2


def usage_error(error: "TyperException") -> UsageError:
    """The same refusal in difftool's words, with the nearest flag for one that is unknown."""
    context: Any = getattr(error, "ctx", None)
    unknown = getattr(error, "option_name", None)
    if unknown is not None and context is not None and "o such option" in error.message:
        return _unknown_flag(unknown, context)
    command = NO_COMMAND.match(error.message)
    if command is not None and command["name"] in later.COMMANDS and context.parent is None:
        return _not_yet(f"difftool {command['name']}", later.COMMANDS[command["name"]])
    extra = "unexpected extra argument" in error.message
    see = f"see {context.command_path if context else 'difftool'} --help"
    return UsageError(_plain(error.format_message()), hint="a prompt goes in -p" if extra else see)


def _not_yet(name: str, meanwhile: str) -> UsageError:
    return UsageError(f"{name}: not available yet", hint=meanwhile)


def _plain(message: str) -> str:
    """Typer's sentence on one line, as our own messages are written."""
    words = " ".join(message.replace("Value error, ", "").split()).rstrip(".")
    return words[:1].lower() + words[1:]


def _unknown_flag(unknown: str, context: Any) -> UsageError:
    """Our flag for a foreign one, else the nearest that the command has, else the command that has it."""
    from difftool.recipe.flags import suggest_flag

    if unknown in later.FLAGS:
        return _not_yet(unknown, later.FLAGS[unknown])
    command, path = context.command, context.command_path
    own = [name for param in command.get_params(context) for name in param.opts]
    below = _flags_below(command)
    near = suggest_flag(unknown, [*own, *below])
    hides = any(param.name == "help_all" for param in command.params)
    hint = f"see {path} {'--help-all' if hides else '--help'}"
    if near in own:
        hint = f"did you mean {near}?"
    elif near in below:
        hint = f"{near} goes after the command: {path} {below[near]} {near}"
    return UsageError(f"unknown flag {unknown}", hint=hint)


def _flags_below(command: Any) -> dict[str, str]:
    """The flags of a group's commands: `generate RECIPE`, the words that the flag follows in the first that has it."""
    found: dict[str, str] = {}
    for name, inner in getattr(command, "commands", {}).items():
        words = [name, *(param.metavar for param in inner.params if param.param_type_name == "argument")]
        for flag in (flag for param in inner.params for flag in (*param.opts, *param.secondary_opts)):
            found.setdefault(flag, " ".join(words))
    return found

"""Turns what Typer says of a wrong command line into a fact and a way out."""

from typing import TYPE_CHECKING, Any

from difftool.errors import DifftoolError

if TYPE_CHECKING:
    from typer import TyperException


class UsageError(DifftoolError):
    """The command line is wrong: nothing was launched."""

    exit_code = 2


def usage_error(error: "TyperException") -> UsageError:
    """The same refusal in difftool's words, with the nearest flag for one that is unknown."""
    context: Any = getattr(error, "ctx", None)
    command = context.command_path if context else "difftool"
    unknown = getattr(error, "option_name", None)
    if unknown is None or context is None or "o such option" not in error.message:
        extra = "unexpected extra argument" in error.message
        return UsageError(
            _plain(error.format_message()), hint="a prompt goes in -p" if extra else f"see {command} --help"
        )
    return UsageError(f"unknown flag {unknown}", hint=_way_out(unknown, context))


def _plain(message: str) -> str:
    """Typer's sentence on one line, as our own messages are written."""
    words = " ".join(message.replace("Value error, ", "").split()).rstrip(".")
    return words[:1].lower() + words[1:]


def _way_out(unknown: str, context: Any) -> str:
    """Our flag for a foreign one, else the nearest that the command has."""
    from difftool.recipe.flags import suggest_flag

    own = [name for param in context.command.get_params(context) for name in param.opts]
    near = suggest_flag(unknown, own)
    if near in own:
        return f"did you mean {near}?"
    if near and hasattr(context.command, "commands"):
        return f"{near} goes after the command: difftool generate RECIPE {near}"
    return f"see {context.command_path} {'--help-all' if '--help-all' in own else '--help'}"

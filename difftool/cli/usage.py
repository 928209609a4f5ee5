"""Turns what Typer says of a wrong command line into a fact and a way out."""

import re
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
    flag = getattr(error, "option_name", None)
    if flag is None or "o such option" not in error.message:
        return UsageError(_sentence(error.format_message()), hint=f"{command} --help")
    return UsageError(f"unknown flag {flag}", hint=_nearest(flag, error, context) or f"{command} --help-all lists all")

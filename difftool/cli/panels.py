"""How help looks: options in panels with the recipe key beside each flag, the common ones first."""

from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMON = "common"
OPTIONS = "options"  # the command's own, without a panel
SHORT = ("arguments", COMMON, OPTIONS)  # the panels that --help shows; --help-all shows every one
HELP, HELP_ALL = "--help", "--help-all"
BUILT_IN_HELP = {
    "help": "show this page",
    "install_completion": "install completion for this shell",
    "show_completion": "print the completion script of this shell",
}
_ALL = "difftool.help-all"
_COLUMN = 36  # a longer flag has its help on the line below

Row = tuple[str, str]


class FullHelp:
    """Where `--help` hides nothing, `--help-all` is another name of it."""

    def get_help_option_names(self, ctx: Any) -> list[str]:
        params: Iterable[Any] = getattr(self, "params", ())
        own = any(HELP_ALL in param.opts for param in params)
        return [HELP] if own else [HELP, HELP_ALL]


class PanelCommand(FullHelp, TyperCommand):
    """A command whose help is grouped by `rich_help_panel`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels = rows_by_panel(self.get_params(ctx))
        everything = _ALL in ctx.meta or not set(panels) - set(SHORT)
        for title, rows in panels.items():
            if everything or title in SHORT:
                with formatter.section(title.capitalize()):
                    formatter.write_dl(rows, col_max=_COLUMN)


class PanelGroup(FullHelp, TyperGroup):
    """The application: its commands, then its own options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        with formatter.section(OPTIONS.capitalize()):
            formatter.write_dl(rows_by_panel(self.get_params(ctx))[OPTIONS], col_max=_COLUMN)


def show_all(ctx: typer.Context, wanted: bool) -> None:
    """Callback of `--help-all`."""
    if wanted:
        ctx.meta[_ALL] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


def rows_by_panel(params: Iterable[Any]) -> dict[str, list[Row]]:
    """Arguments and common flags first, then the panels as they come, the command's own options last."""
    panels: dict[str, list[Row]] = {"arguments": [], COMMON: []}
    own: list[Row] = []
    for param in params:
        if param.param_type_name == "argument":
            panels["arguments"].append((param.metavar, param.help))
        elif param.rich_help_panel in (None, OPTIONS):
            own.append(_row(param))
        else:
            panels.setdefault(param.rich_help_panel, []).append(_row(param))
    return {title: rows for title, rows in (*panels.items(), (OPTIONS, own)) if rows}


def _row(param: Any) -> Row:
    """`-p, --prompt sampling.prompt` and its help."""
    shown = [HELP] if param.name == "help" else param.opts
    names = ", ".join(sorted(shown, key=lambda name: name.startswith("--")))
    if param.secondary_opts:
        names += " / " + ", ".join(param.secondary_opts)
    text = BUILT_IN_HELP.get(param.name, param.help)
    return f"{names} {param.metavar or ''}".rstrip(), f"{text}; required" if param.required else text

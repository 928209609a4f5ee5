"""How help looks: options in named panels, the common ones first and the others only under `--help-all`."""

from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from collections.abc import Iterable

SHORT_PANELS = ("Common", "Options")  # what --help shows; --help-all shows every panel
_ALL = "difftool.help-all"
_COLUMN = 34  # a longer flag has its help on the line below


class PanelCommand(TyperCommand):
    """A command whose help is grouped by `rich_help_panel`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        everything = _ALL in ctx.meta
        panels = _panels(self.get_params(ctx), ctx)
        for title in sorted(panels, key=_order):
            if everything or title in SHORT_PANELS:
                with formatter.section(title):
                    formatter.write_dl(panels[title], col_max=_COLUMN)


class PanelGroup(TyperGroup):
    """The application: its commands, then its own options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        with formatter.section("Options"):
            formatter.write_dl(_panels(self.get_params(ctx), ctx)["Options"], col_max=_COLUMN)


def show_all(ctx: typer.Context, wanted: bool) -> None:
    """Callback of `--help-all`."""
    if wanted:
        ctx.meta[_ALL] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


def _panels(params: "Iterable[Any]", ctx: Any) -> dict[str, list[tuple[str, str]]]:
    panels: dict[str, list[tuple[str, str]]] = {}
    for param in params:
        record = param.get_help_record(ctx)
        if record:
            title = "Arguments" if param.param_type_name == "argument" else param.rich_help_panel or "Options"
            panels.setdefault(title, []).append(record)
    return panels


def _order(title: str) -> int:
    """Common first, the command's own options last, the rest as the flag table has them."""
    return {"Arguments": -2, "Common": -1, "Options": 1}.get(title, 0)

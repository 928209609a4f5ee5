"""`difftool history`: what earlier sessions measured, by cohort, and which of them is blessed."""

import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftool.cli.panels import PanelCommand, PanelGroup
from difftool.cli.usage import UsageError

if TYPE_CHECKING:
    from difftool.report.history import Cohort, Session

FolderFlag = Annotated[Path, typer.Option("--dir", metavar="FOLDER", help="where the history lies")]
DumpsArgument = Annotated[list[Path], typer.Argument(metavar="DUMP", help="one or more perf dumps")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="the id of a run that was added, or its perf dump")]
ReasonFlag = Annotated[str, typer.Option("--reason", metavar="TEXT", help="why later runs are measured by this one")]
JsonFlag = Annotated[bool, typer.Option("--json", help="print one JSON object")]
FOLDER = Path("perf-history")
SHOWN = ("total", "denoising", "peak_memory")


def register(app: typer.Typer) -> None:
    history = typer.Typer(cls=PanelGroup, help="Keep perf dumps over time: add, show and bless sessions.")
    history.callback(invoke_without_command=True)(show_help)
    history.command("add", cls=PanelCommand)(add)
    history.command("show", cls=PanelCommand)(show)
    history.command("bless", cls=PanelCommand)(bless)
    app.add_typer(history, name="history")


def show_help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def add(dumps: DumpsArgument, *, folder: FolderFlag = FOLDER) -> None:
    """Append perf dumps to the sessions of their cohorts."""
    from difftool.report import history
    from difftool.report.measured import read_measured

    for dump in [read_measured(path) for path in dumps]:
        cohort = history.add(folder, dump)
        typer.echo(f"{dump.path}: session {len(cohort.sessions)} of cohort {cohort.name}")
        _warn(cohort)


def show(*, folder: FolderFlag = FOLDER, as_json: JsonFlag = False) -> None:
    """Print every cohort: its sessions, the blessed one, what they differ by."""
    from difftool.report.history import read_history

    cohorts = read_history(folder)
    if as_json:
        typer.echo(json.dumps({"cohorts": [_object(cohort) for cohort in cohorts]}, indent=2, ensure_ascii=False))
        return
    sys.stdout.write("\n".join("".join(f"{line}\n" for line in _lines(cohort)) for cohort in cohorts))


def bless(run: RunArgument, *, reason: ReasonFlag, folder: FolderFlag = FOLDER) -> None:
    """Make a session the one that later ones are measured by."""
    from difftool.report import history
    from difftool.report.measured import read_measured

    if not reason.strip():
        raise UsageError("--reason is empty", hint="say why later runs are measured by this one")
    request_id = read_measured(Path(run)).request_id if Path(run).is_file() else run
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    cohort, blessing = history.bless(folder, request_id, reason=reason.strip(), timestamp=now)
    instead = f" instead of {blessing.replaces}" if blessing.replaces else ""
    typer.echo(f"{request_id} is blessed in cohort {cohort.name}{instead}: {blessing.reason}")
    _warn(cohort)


def _warn(cohort: "Cohort") -> None:
    from difftool.report.history import drifts

    for drift in drifts(cohort):
        typer.echo(f"warning: W-DRIFT: {drift}", err=True)


def _object(cohort: "Cohort") -> dict[str, Any]:
    from difftool.report.history import drifts, noise

    return {
        "cohort": cohort.name,
        "blessed": cohort.blessed.request_id if cohort.blessed else None,
        "noise": noise(cohort),
        "drifts": drifts(cohort),
        "sessions": [session.model_dump() for session in cohort.sessions],
        "blessings": [blessing.model_dump() for blessing in cohort.blessings],
    }


def _lines(cohort: "Cohort") -> list[str]:
    """What the cohort is, then a session a line, oldest first."""
    from difftool.report.history import ENOUGH_SESSIONS, drifts, noise

    last, found = cohort.sessions[-1], noise(cohort)
    floors = ", ".join(f"{name} {found[name]:.1f}" for name in SHOWN if name in found)
    blessing = cohort.blessings[-1] if cohort.blessings else None
    return [
        f"cohort {cohort.name}: {last.model} on {last.device_count} x {last.device}",
        *_table(cohort.sessions, blessing.request_id if blessing else None),
        f"  sessions differ by: {floors or f'not known before {ENOUGH_SESSIONS} sessions'}",
        *([f"  blessed {blessing.timestamp}: {blessing.reason}"] if blessing else []),
        *(f"  W-DRIFT: {drift}" for drift in drifts(cohort)),
    ]


def _table(sessions: "Sequence[Session]", blessed: str | None) -> list[str]:
    head = [" ", "run", "commit", "runs", *SHOWN]
    rows = [
        [
            "*" if session.request_id == blessed else " ",
            session.request_id,
            session.commit_hash[:12],
            str(session.runs),
            *(f"{session.medians[name]:.1f}" if name in session.medians else "-" for name in SHOWN),
        ]
        for session in sessions
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  "
        + "  ".join(
            f"{cell:{'<' if i < 3 else '>'}{width}}" for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]

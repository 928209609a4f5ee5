"""`difftool compare-perf`: reads perf dumps and says what may be said of their difference."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difftool.cli.panels import PanelCommand
from difftool.cli.usage import UsageError

if TYPE_CHECKING:
    from difftool.report.compare import Report
    from difftool.report.verdict import Verdict

CANNOT_TELL = 12
BaseArgument = Annotated[Path, typer.Argument(metavar="BASE", help="the perf dump to compare with")]
NewArgument = Annotated[list[Path], typer.Argument(metavar="NEW", help="one or more perf dumps")]
OutputFlag = Annotated[
    list[Path] | None,
    typer.Option("--output", "-o", metavar="FILE", help="write the report as .md or .json; repeatable"),
]
AllowFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-mismatch", metavar="KEY", help="go on though workload, device or device_count differs; repeatable"
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="print the report as one JSON object")]
GateFlag = Annotated[bool, typer.Option("--gate", help="exit 12 for INCONCLUSIVE too")]
ReportOnlyFlag = Annotated[bool, typer.Option("--report-only", help="exit 0 for any verdict")]


def register(app: typer.Typer) -> None:
    app.command("compare-perf", cls=PanelCommand)(compare_perf)


def compare_perf(
    base: BaseArgument,
    new: NewArgument,
    *,
    output: OutputFlag = None,
    allow_mismatch: AllowFlag = None,
    as_json: JsonFlag = False,
    gate: GateFlag = False,
    report_only: ReportOnlyFlag = False,
) -> None:
    """Compare perf dumps with the first of them."""
    from difftool.report.compare import compare
    from difftool.report.measured import read_measured

    if gate and report_only:
        raise UsageError("--gate and --report-only exclude each other", hint="--report-only is exit 0 for any verdict")
    _check_outputs(output or [])
    _check_keys(allow_mismatch or [])
    dumps = [read_measured(path) for path in (base, *new)]
    report = compare(dumps[0], dumps[1:], accepted=allow_mismatch or ())
    sys.stdout.write(_text(report, ".json" if as_json else ".md"))
    sys.stdout.flush()
    _write(report, output or [])
    code = 0 if report_only else exit_code(report.verdict, gate=gate)
    if code:
        raise typer.Exit(code)


def exit_code(verdict: "Verdict", *, gate: bool) -> int:
    """What the verdict means to a script."""
    from difftool.report.verdict import Verdict

    if verdict is Verdict.INCONCLUSIVE:
        return CANNOT_TELL if gate else 0
    return {Verdict.REGRESSED: 10, Verdict.QUALITY_FAILED: 11, Verdict.INCOMPARABLE: CANNOT_TELL}.get(verdict, 0)


def _check_outputs(outputs: list[Path]) -> None:
    """Refused before anything is read: a suffix that no renderer has."""
    for path in outputs:
        if path.suffix.lower() not in RENDERERS:
            raise UsageError(f"-o {path}: not available yet", hint=f"a report is {' or '.join(RENDERERS)}")


def _check_keys(keys: list[str]) -> None:
    from difftool.report.comparable import CHECKS

    for key in keys:
        if key not in CHECKS:
            raise UsageError(f"--allow-mismatch {key}: no such condition", hint=f"one of {', '.join(CHECKS)}")


def _write(report: "Report", outputs: list[Path]) -> None:
    from difftool.files import write_atomic

    for path in outputs:
        write_atomic(path, _text(report, path.suffix.lower()).encode())


def _text(report: "Report", suffix: str) -> str:
    return RENDERERS[suffix](report)


def _markdown(report: "Report") -> str:
    from difftool.report.markdown import render_markdown

    return render_markdown(report)


def _json(report: "Report") -> str:
    text: str = report.model_dump_json(by_alias=True, indent=2)
    return text + "\n"


RENDERERS = {".md": _markdown, ".json": _json}

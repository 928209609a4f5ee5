"""`difftool compare-perf`: reads perf dumps and says what may be said of their difference."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from difftool.cli.panels import PanelCommand
from difftool.cli.usage import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from difftool.report.compare import Report
    from difftool.report.floors import Floor
    from difftool.report.measured import Measured
    from difftool.report.verdict import Verdict

CANNOT_TELL = 12
STEP_SUMMARY = "GITHUB_STEP_SUMMARY"  # set by GitHub Actions to the file that a step appends to
COMMENT = Path("comment.md")
BaseArgument = Annotated[Path, typer.Argument(metavar="BASE", help="the perf dump to compare with")]
NewArgument = Annotated[list[Path], typer.Argument(metavar="NEW", help="one or more perf dumps")]
OutputFlag = Annotated[
    list[Path] | None,
    typer.Option("--output", "-o", metavar="FILE", help="write the report as .md, .json or .xml (JUnit); repeatable"),
]
AllowFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-mismatch", metavar="KEY", help="go on though workload, device or device_count differs; repeatable"
    ),
]
ThresholdFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--threshold", metavar="METRIC=AMOUNT", help="the least change that counts, as total=3%,50ms; repeatable"
    ),
]
QualityFlag = Annotated[
    Literal["exact", "lossless", "near", "lossy"] | None,
    typer.Option("--quality", metavar="TIER", help="what the new outputs must reach: exact, lossless, near or lossy"),
]
HistoryFlag = Annotated[
    Path | None,
    typer.Option("--history", metavar="FOLDER", help="raise the floors to what sessions in this history differ by"),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="print the report as one JSON object")]
GateFlag = Annotated[bool, typer.Option("--gate", help="exit 12 for INCONCLUSIVE too")]
ReportOnlyFlag = Annotated[bool, typer.Option("--report-only", help="exit 0 for any verdict")]
GithubFlag = Annotated[
    bool, typer.Option("--github", help="append the step summary, annotate, and write comment.md (GitHub Actions)")
]


def register(app: typer.Typer) -> None:
    app.command("compare-perf", cls=PanelCommand)(compare_perf)


def compare_perf(
    base: BaseArgument,
    new: NewArgument,
    *,
    output: OutputFlag = None,
    allow_mismatch: AllowFlag = None,
    threshold: ThresholdFlag = None,
    quality: QualityFlag = None,
    history: HistoryFlag = None,
    as_json: JsonFlag = False,
    gate: GateFlag = False,
    report_only: ReportOnlyFlag = False,
    github: GithubFlag = False,
) -> None:
    """Compare perf dumps with the first of them."""
    from difftool.report.compare import Rules, compare
    from difftool.report.measured import read_measured

    check_modes(output or [], gate=gate, report_only=report_only, github=github)
    check_keys(allow_mismatch or [])
    floors = read_thresholds(threshold or [])
    dumps = [read_measured(path) for path in (base, *new)]
    check_metrics(floors, dumps)
    noise: Mapping[str, float] = {}
    if history is not None:
        dumps[0], noise = _with_history(dumps[0], history)
    rules = Rules(accepted=allow_mismatch or (), floors=floors, noise=noise, tier=quality)
    report = compare(dumps[0], dumps[1:], rules)
    code = deliver(report, output or [], as_json=as_json, gate=gate, report_only=report_only, github=github)
    if code:
        raise typer.Exit(code)


def deliver(
    report: "Report", outputs: "Sequence[Path]", *, as_json: bool, gate: bool, report_only: bool, github: bool
) -> int:
    """Prints the report, writes it wherever it was asked for, and returns the exit code."""
    sys.stdout.write(_text(report, ".json" if as_json else ".md"))
    sys.stdout.flush()
    write_reports(report, outputs, github=github)
    return 0 if report_only else exit_code(report.verdict, gate=gate)


def write_reports(report: "Report", outputs: "Sequence[Path]", *, github: bool) -> None:
    """Wherever it was asked for besides stdout."""
    from difftool.files import write_atomic

    for path in outputs:
        write_atomic(path, _text(report, path.suffix.lower()).encode())
    if github:
        _tell_github(report)


def exit_code(verdict: "Verdict", *, gate: bool) -> int:
    """What the verdict means to a script."""
    from difftool.report.verdict import Verdict

    if verdict is Verdict.INCONCLUSIVE:
        return CANNOT_TELL if gate else 0
    return {Verdict.REGRESSED: 10, Verdict.QUALITY_FAILED: 11, Verdict.INCOMPARABLE: CANNOT_TELL}.get(verdict, 0)


def check_modes(outputs: "Sequence[Path]", *, gate: bool, report_only: bool, github: bool) -> None:
    """Refused before anything is read: flags that exclude each other, a suffix that no renderer has, no GitHub."""
    if gate and report_only:
        raise UsageError("--gate and --report-only exclude each other", hint="--report-only is exit 0 for any verdict")
    for path in outputs:
        if path.suffix.lower() not in RENDERERS:
            *most, last = RENDERERS
            raise UsageError(f"-o {path}: not available yet", hint=f"a report is {', '.join(most)} or {last}")
    if github and not os.environ.get(STEP_SUMMARY):
        raise UsageError(f"--github: {STEP_SUMMARY} is not set", hint="it is for a step of GitHub Actions")


def read_thresholds(texts: "Sequence[str]") -> "dict[str, Floor]":
    """The floor by metric; of two for the same metric the later one."""
    from difftool.report.floors import parse_threshold

    floors = {}
    for text in texts:
        try:
            metric, floor = parse_threshold(text)
        except ValueError as error:
            raise UsageError(f"--threshold {text}: {error}", hint="for example --threshold total=3%,50ms") from None
        floors[metric] = floor
    return floors


def check_metrics(floors: "Mapping[str, Floor]", dumps: "Sequence[Measured]") -> None:
    """A floor of a metric that no dump has would do nothing."""
    known = dict.fromkeys(name for dump in dumps for name in dump.series)
    for name in floors:
        if name not in known:
            raise UsageError(f"--threshold {name}: no dump has this metric", hint=f"one of {', '.join(known)}")


def check_keys(keys: "Sequence[str]") -> None:
    from difftool.report.comparable import CHECKS

    for key in keys:
        if key not in CHECKS:
            raise UsageError(f"--allow-mismatch {key}: no such condition", hint=f"one of {', '.join(CHECKS)}")


def _with_history(base: "Measured", folder: Path) -> "tuple[Measured, Mapping[str, float]]":
    """The base with what its history says, and the noise between the sessions of its cohort."""
    from dataclasses import replace

    from difftool.report.comparable import cohort_of
    from difftool.report.history import ENOUGH_SESSIONS, drifts, noise, read_cohort

    cohort = read_cohort(folder, cohort_of(base))
    found, count = noise(cohort), len(cohort.sessions)
    said = f"{count} session{'s' * (count != 1)} of cohort {cohort.name}"
    needed = "" if found else f", and {ENOUGH_SESSIONS} give a noise floor"
    notes = [f"history: {said}{needed}", *(f"W-DRIFT: {drift}" for drift in drifts(cohort))]
    return replace(base, notes=(*base.notes, *notes)), found


def _tell_github(report: "Report") -> None:
    from difftool.files import output_error, write_atomic
    from difftool.report.github import annotations, comment

    summary = Path(os.environ[STEP_SUMMARY])
    try:
        with summary.open("a", encoding="utf-8") as file:
            file.write(_text(report, ".md"))
    except OSError as error:
        raise output_error(summary, error) from error
    write_atomic(COMMENT, comment(report).encode())
    sys.stderr.write(annotations(report))  # the runner reads them from either stream


def _text(report: "Report", suffix: str) -> str:
    return RENDERERS[suffix](report)


def _markdown(report: "Report") -> str:
    from difftool.report.markdown import render_markdown

    return render_markdown(report)


def _json(report: "Report") -> str:
    text: str = report.model_dump_json(by_alias=True, indent=2)
    return text + "\n"


def _junit(report: "Report") -> str:
    from difftool.report.junit import render_junit

    return render_junit(report)


RENDERERS = {".md": _markdown, ".json": _json, ".xml": _junit}

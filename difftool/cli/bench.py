"""`difftool bench`: measures a recipe, and races it against others, turn by turn."""

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from difftool.cli.compare_perf import AllowFlag, GithubFlag, OutputFlag, ThresholdFlag
from difftool.cli.generate import VerboseFlag
from difftool.cli.options import RecipeArguments, recipe_command
from difftool.cli.usage import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from difftool.cli.contest import Contest
    from difftool.cli.progress import Mode
    from difftool.launch.race import Schedule
    from difftool.report.compare import Report, Rules

TIME = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>[smh]?)")
SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
OWN = ("output", "return_frames", "keep_going")  # -o names reports here, and a failed item ends the race

ArmFlag = Annotated[
    list[str] | None,
    typer.Option("--arm", metavar="NAME=RECIPE[@PYTHON]", help="another recipe, or another environment's; repeatable"),
]
VsFlag = Annotated[
    Literal["diffusers"] | None, typer.Option("--vs", metavar="diffusers", help="diffusers' own pipeline of the model")
]
SweepFlag = Annotated[
    list[str] | None,
    typer.Option("--sweep", metavar="KEY=A,B", help="an arm for each value, or combination of them; repeatable"),
]
MaxTimeFlag = Annotated[
    str, typer.Option("--max-time", metavar="TIME", help="90s, 20m or 1h: no further round starts; default 20m")
]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="print only the report")]
JsonFlag = Annotated[bool, typer.Option("--json", help="print every event as one JSON object a line")]
GateFlag = Annotated[
    bool, typer.Option("--gate", help="exit 10 REGRESSED, 11 QUALITY_FAILED, 12 INCONCLUSIVE or INCOMPARABLE")
]


def register(app: typer.Typer) -> None:
    recipe_command(app, "bench", bench, without=OWN)


def bench(
    arguments: RecipeArguments,
    *,
    arm: ArmFlag = None,
    vs: VsFlag = None,
    sweep: SweepFlag = None,
    max_time: MaxTimeFlag = "20m",
    gate: GateFlag = False,
    threshold: ThresholdFlag = None,
    allow_mismatch: AllowFlag = None,
    output: OutputFlag = None,
    github: GithubFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure a recipe: warm-up, repeats, and a race against other arms."""
    from difftool.cli.compare_perf import check_keys, check_modes, exit_code, read_thresholds, write_reports
    from difftool.cli.contest import Asked, gather
    from difftool.cli.progress import choose_mode
    from difftool.launch.race import Schedule
    from difftool.report.compare import Rules

    if quiet and as_json:
        raise UsageError("--quiet and --json exclude each other", hint="--json prints only events already")
    check_modes(output or [], gate=gate, report_only=False, github=github)
    check_keys(allow_mismatch or [])
    rules = Rules(accepted=allow_mismatch or (), floors=read_thresholds(threshold or []), raced=True)
    _check_floors(rules)
    seconds = read_time(max_time)
    contest = gather(arguments, Asked(arm or (), vs, sweep or ()))
    if len(contest.specs) == 1 and (gate or output or github or threshold or allow_mismatch):
        raise UsageError("there is nothing to compare", hint="name another arm: --arm, --vs diffusers or --sweep")
    mode = choose_mode(as_json=as_json, quiet=quiet, verbose=verbose)
    schedule = Schedule(contest.repeats, contest.warmup, seconds)
    dumps, report = race(contest, schedule, rules, mode=mode, verbose=verbose)
    tell(contest, dumps, report, mode)
    if report is not None:
        write_reports(report, output or (), github=github)
        if gate and (code := exit_code(report.verdict, gate=True)):
            raise typer.Exit(code)


def read_time(text: str) -> float:
    """`90s`, `20m`, `1.5h` or a number of seconds, in seconds."""
    found = TIME.fullmatch(text.strip())
    if found is None or not float(found["number"]):
        raise UsageError(f"--max-time {text}: is no time", hint="write 90s, 20m or 1h")
    return float(found["number"]) * SECONDS[found["unit"]]


def _check_floors(rules: "Rules") -> None:
    """Asked before the race: a floor of a metric that no dump ever has would do nothing."""
    from difftool.facts import STAGE_NAMES
    from difftool.report.compare import AFTER_STAGES

    known = ("total", *STAGE_NAMES, *AFTER_STAGES)
    for name in rules.floors:
        if name not in known:
            raise UsageError(f"--threshold {name}: no dump has this metric", hint=f"one of {', '.join(known)}")


def race(
    contest: "Contest", schedule: "Schedule", rules: "Rules", *, mode: "Mode", verbose: bool
) -> "tuple[Sequence[Path], Report | None]":
    """Runs it to the end: the arms' dumps, and how they compare with the base's; None where it is alone."""
    import psutil  # type: ignore[import-untyped]  # here: too slow for `--help`

    from difftool.cli.turns import make_turns
    from difftool.launch.race import Race, Watcher
    from difftool.report.interim import is_settled

    def free_mb() -> float:
        return float(psutil.virtual_memory().available) / 2**20

    def decided() -> bool:
        report = judge(contest, running.write_dumps(), rules)
        return report is None or all(is_settled(comparison) for comparison in report.comparisons)

    arms = contest.arms(mode, verbose=verbose)
    with make_turns(mode, contest.repeats) as turns:
        watcher = Watcher(turns.event, turns.turn, turns.note)
        running = Race(arms, schedule, watcher, seconds=time.monotonic, free_mb=free_mb)
        running.run(decided)
    dumps = running.write_dumps()
    return dumps, judge(contest, dumps, rules)


def judge(contest: "Contest", dumps: "Sequence[Path]", rules: "Rules") -> "Report | None":
    """Every arm against the base; an arm of the same request by another backend needs no word to be comparable."""
    from dataclasses import replace

    from difftool.report.booking import book_alike
    from difftool.report.compare import compare
    from difftool.report.measured import read_measured
    from difftool.report.verdict import worst

    base, *others = [read_measured(path) for path in dumps]
    reports = []
    for spec, other in zip(contest.specs[1:], others, strict=True):
        is_kin = spec.name in contest.kin
        accepted = {*rules.accepted, *(["workload"] if is_kin else [])}
        ours, theirs = book_alike(base, other) if is_kin else (base, other)
        reports.append(compare(ours, [theirs], replace(rules, accepted=accepted)))
    if not reports:
        return None
    verdict = worst(report.verdict for report in reports)
    every = [comparison for report in reports for comparison in report.comparisons]
    return reports[0].model_copy(update={"verdict": verdict, "comparisons": every})


def tell(contest: "Contest", dumps: "Sequence[Path]", report: "Report | None", mode: "Mode") -> None:
    """The report or, of one arm, its numbers, on stdout; where the dumps are, on stderr."""
    from difftool.cli.progress import shown
    from difftool.launch.events import Compared

    paths = {spec.name: shown(path) for spec, path in zip(contest.specs, dumps, strict=True)}
    if mode == "json":
        content = report.model_dump(mode="json", by_alias=True) if report else None
        print(Compared(dumps=paths, report=content).model_dump_json(exclude={"rank", "arm"}), flush=True)
        return
    sys.stdout.write(_markdown(report, dumps[0]))
    sys.stdout.flush()
    if mode != "quiet":
        print(*(f"perf dump of {name}: {path}" for name, path in paths.items()), sep="\n", file=sys.stderr)


def _markdown(report: "Report | None", alone: Path) -> str:
    from difftool.report.markdown import render_markdown
    from difftool.report.perf import read_perf

    if report is not None:
        return render_markdown(report)
    rows = ["| metric | n | median | 95 % interval | min | max |", "|---|--:|--:|--:|--:|--:|"]
    for name, found in read_perf(alone).summary.items():
        interval = "-" if found.ci95 is None else f"{found.ci95[0]:.1f} to {found.ci95[1]:.1f}"
        unit = "MiB" if "memory" in name else "ms"
        rows.append(
            f"| {name} ({unit}) | {found.n} | {found.median:.1f} | {interval} | {found.min:.1f} | {found.max:.1f} |"
        )
    return "\n".join(rows) + "\n"

"""A profiled run on the command line: what to record, and the tables of what was."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from difftool.cli.usage import UsageError

if TYPE_CHECKING:
    from difftool.planning.plan import ProfilePlan
    from difftool.report.perf import Profile

TimestepsFlag = Annotated[
    int | None,
    typer.Option(
        "--num-profiled-timesteps",
        metavar="N",
        help="steps to record after the first one; default 5",
        rich_help_panel="run",
    ),
]
AllStagesFlag = Annotated[
    bool, typer.Option("--profile-all-stages", help="record every stage and step", rich_help_panel="run")
]
ToolFlag = Annotated[
    Literal["torch", "nsys"],
    typer.Option("--tool", metavar="torch|nsys", help="what records: torch's profiler or Nsight Systems"),
]
DelayFlag = Annotated[
    int | None, typer.Option("--delay", metavar="SECONDS", help="nsys: wait so long before it records")
]
DurationFlag = Annotated[
    int | None, typer.Option("--duration", metavar="SECONDS", help="nsys: record for so long; else to the end")
]
SnapshotFlag = Annotated[
    bool, typer.Option("--memory-snapshot", help="CUDA: write down every allocation of the first item")
]


@dataclass(frozen=True)
class Window:
    """The seconds that `nsys` records."""

    delay: int | None = None
    duration: int | None = None

    @property
    def given(self) -> dict[str, int]:
        named = {"--delay": self.delay, "--duration": self.duration}
        return {flag: seconds for flag, seconds in named.items() if seconds is not None}


def what_to_record(*, profile: bool, steps: int | None, all_stages: bool) -> "ProfilePlan | None":
    """What `difftool generate` records. Raises UsageError for flags that would do nothing."""
    if profile:
        return what_torch_records(Window(), steps=steps, all_stages=all_stages)
    given = _of_torch(steps, all_stages)
    if given:
        raise UsageError(f"{given} says what --profile records", hint="add --profile")
    return None


def what_torch_records(window: Window, *, steps: int | None, all_stages: bool) -> "ProfilePlan":
    """Some steps or all stages of the first item. Raises UsageError for flags that would do nothing."""
    from difftool.planning.plan import ProfilePlan

    for flag in window.given:
        raise UsageError(f"{flag} says when nsys records", hint="add --tool nsys")
    if all_stages and steps is not None:
        raise UsageError("--profile-all-stages records every step", hint="leave --num-profiled-timesteps out")
    if steps is not None and steps < 1:
        raise UsageError(f"--num-profiled-timesteps {steps} records nothing", hint="use 1 or more")
    return ProfilePlan(all_stages=all_stages) if steps is None else ProfilePlan(steps=steps)


def what_nsys_records(window: Window, *, steps: int | None, all_stages: bool) -> "ProfilePlan":
    """All stages of all items, in a window of time. Raises UsageError for flags that would do nothing."""
    from difftool.planning.plan import ProfilePlan

    given = _of_torch(steps, all_stages)
    if given:
        message = f"{given} is of --tool torch: nsys records every stage and step"
        raise UsageError(message, hint="leave it out; --delay and --duration say when nsys records")
    for flag, seconds in window.given.items():
        if seconds < 1:
            raise UsageError(f"{flag} {seconds} is no number of seconds", hint="use 1 or more, or leave it out")
    return ProfilePlan(tool="nsys", all_stages=True, delay=window.delay, duration=window.duration)


def _of_torch(steps: int | None, all_stages: bool) -> str | None:
    return "--profile-all-stages" if all_stages else "--num-profiled-timesteps" if steps is not None else None


def profile_lines(profile: "Profile | None", records: Path) -> list[str]:
    """What was recorded and how to open it; `records` is where the dump is."""
    if profile is None:
        return []
    lines = _report_lines(profile, records) if profile.report is not None else _trace_lines(profile, records)
    if profile.snapshots:
        snapshots = [f"memory snapshot: {os.path.relpath(records / file.path)}" for file in profile.snapshots]
        lines += [*snapshots, "open snapshots in https://pytorch.org/memory_viz"]
    return lines


def _report_lines(profile: "Profile", records: Path) -> list[str]:
    assert profile.report is not None
    report = shlex.quote(os.path.relpath(records / profile.report))
    return [f"report: {report}", f"open it with: nsys-ui {report}", f"or print it: nsys stats {report}"]


def _trace_lines(profile: "Profile", records: Path) -> list[str]:
    """The longest operations of the first rank, where its time went, and the traces."""
    steps = f"steps {profile.steps[0]} to {profile.steps[-1]}" if profile.steps else "no steps"
    total = sum(profile.kinds_ms.values()) or 1.0
    rows = [f"{one.ms:>10.1f} {one.share_pct:>5.1f} %  {one.calls:>6}  {one.name}" for one in profile.kernels]
    kinds = [f"{kind} {100 * ms / total:.0f} %" for kind, ms in profile.kinds_ms.items() if 100 * ms / total >= 0.5]
    traces = [os.path.relpath(records / trace.path) for trace in profile.traces]
    return [
        f"recorded {', '.join(profile.stages)}: {steps}, with the profiler's own time",
        "   self ms    share   calls  operation",
        *rows,
        f"where the time went: {', '.join(kinds)}",
        *(f"trace: {trace}" for trace in traces),
        "open traces in https://ui.perfetto.dev",
    ]

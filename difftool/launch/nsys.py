"""A run under Nsight Systems: what it needs here, the command that starts the ranks, and the report that it leaves.

Options: https://docs.nvidia.com/nsight-systems/UserGuide/index.html.
"""

import re
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from difftool.errors import OutputError, PlanError
from difftool.launch.log import tail
from difftool.launch.records import LOG_FILE
from difftool.planning.naming import nsys_report
from difftool.planning.plan import Plan, ProfilePlan

OPTIONS = (
    "--trace=cuda,nvtx,osrt",
    "--trace-fork-before-exec=true",  # the ranks are processes of processes
    "--cuda-graph-trace=node",
    "--force-overwrite=true",
)
LOG_LINES = 8
UNHEARD = (0, 2, 12)  # the first release whose ranges Nsight Systems 2022.4 and 2023.2 leave out: NVIDIA/NVTX issue 126
INSTALL_NVTX = "pip install 'nvtx<0.2.12'"


def check_nsys(profile: ProfilePlan | None, *, alone: bool) -> None:
    """Before anything starts; `alone`: difftool starts all ranks itself, on this machine. Raises PlanError."""
    if profile is None or profile.tool != "nsys":
        return
    if not alone:
        message = "--tool nsys records ranks that difftool itself starts on one machine, and these are not"
        raise PlanError(message, hint="use --tool torch here")
    if shutil.which("nsys") is None:
        raise PlanError(
            "--tool nsys: there is no nsys on PATH",
            hint="install NVIDIA Nsight Systems, from https://developer.nvidia.com/nsight-systems, and put it on PATH",
        )
    fault = nvtx_fault()
    if fault is not None:
        raise PlanError(f"--tool nsys: {fault}", hint=INSTALL_NVTX)


def nvtx_fault() -> str | None:
    """What is wrong with the package by which ranges are named; None where it is right."""
    try:
        version = metadata.version("nvtx")
    except metadata.PackageNotFoundError:
        return "the package nvtx, which names what runs, is not installed"
    if tuple(int(number) for number in re.findall(r"\d+", version)[:3]) >= UNHEARD:
        return f"nvtx {version} is installed, whose ranges some versions of nsys do not record"
    return None


def under_nsys(plan: Plan) -> bool:
    return plan.profile is not None and plan.profile.tool == "nsys"


def nsys_command(plan: Plan, run_id: str) -> list[str]:
    """What stands before the command of the ranks' agent."""
    assert plan.profile is not None
    delay, duration = plan.profile.delay, plan.profile.duration
    window = [] if delay is None else [f"--delay={delay}"]
    # without --kill it ends the ranks with its recording
    window += [] if duration is None else [f"--duration={duration}", "--kill=none"]
    file = str(nsys_report(plan, run_id).absolute().with_suffix("")).replace("%", "%%")
    return ["nsys", "profile", *OPTIONS, *window, "-o", file]


def await_report(plan: Plan, records: Path, wait: Callable[[float], bool]) -> None:
    """Waits for `nsys` to write its report, which it does once the ranks have ended. Raises OutputError."""
    wait(plan.stall_timeout_s)
    file, log = nsys_report(plan, records.name), records / LOG_FILE
    if file.exists():
        return
    assert plan.profile is not None
    delay = plan.profile.delay
    late = "" if delay is None else f"the run may have ended before --delay {delay}; "
    quoted = "".join(f"\n  | {line}" for line in tail(log, LOG_LINES).splitlines())
    raise OutputError(f"nsys left no report {file}{quoted}", hint=f"{late}the outputs are made; nsys's log is {log}")

"""Runs plans in worker processes of their own and says how they ended."""

from difftool.launch.fallback import run_to_the_end
from difftool.launch.meeting import Meeting
from difftool.launch.outside import check_world
from difftool.launch.records import open_records
from difftool.launch.resume import check_same_work, find_run, recorded_plan, take_up
from difftool.launch.supervise import RunResult, run, supervise

__all__ = [
    "Meeting",
    "RunResult",
    "check_same_work",
    "check_world",
    "find_run",
    "open_records",
    "recorded_plan",
    "run",
    "run_to_the_end",
    "supervise",
    "take_up",
]

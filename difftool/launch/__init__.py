"""Runs plans in worker processes of their own and says how they ended."""

from difftool.launch.records import open_records
from difftool.launch.resume import check_same_work, find_run, recorded_plan, take_up
from difftool.launch.supervise import RunResult, run

__all__ = ["RunResult", "check_same_work", "find_run", "open_records", "recorded_plan", "run", "take_up"]

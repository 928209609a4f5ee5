"""Runs plans in worker processes of their own and says how they ended."""

from difftool.launch.records import open_records
from difftool.launch.supervise import RunResult, run

__all__ = ["RunResult", "open_records", "run"]

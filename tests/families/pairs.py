"""What the ranks of the test pool run: whole plans, by one rank or by several, with graphs that run as they are."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from tiny import Quiet

from difftool.acceleration import compilation
from difftool.engine import Kept, run_plan


def make(world, *, records):
    """Makes what a plan asks for. Its outputs and perf dump are on the disk."""
    here = replace(world, folder=None)  # the pool has joined its ranks already
    threads = torch.get_num_threads()
    try:
        with ExitStack() as ends, patch.object(compilation, "BACKEND", "eager"):
            run_plan(Path(records) / "plan.json", Quiet(), 0.0, here, Kept(ends))
    finally:
        torch.set_num_threads(threads)

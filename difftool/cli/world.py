"""`difftool generate` as one of several processes that torchrun, srun or mpirun started: the first one acts and talks,
the others lend it their ranks, and all end with the same exit code.
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from difftool.errors import DifftoolError

if TYPE_CHECKING:
    from difftool.launch.meeting import Meeting

COMMAND = "generate"
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMI_SIZE")  # `launch.outside` reads them


def take_part(
    arguments: Sequence[str],
    act: "Callable[[Meeting | None], int]",
    tell: Callable[[DifftoolError], int],
) -> int:
    """Runs `act`, with the meeting of the world where there is one, or does what the first process asks; the exit code.

    `tell` prints an error and returns its exit code.
    """
    if list(arguments[:1]) != [COMMAND] or all(os.environ.get(size, "1") == "1" for size in SIZES):
        return act(None)
    from difftool.launch.meeting import Meeting
    from difftool.launch.member import attend
    from difftool.launch.outside import read_outside, speaks

    first = speaks(os.environ)
    try:
        outside = read_outside(os.environ)
        if outside is None or outside.machines:
            return act(None)
        if outside.rank > 0:
            first = outside.rank == 1  # for want of the first process, which tells everything else
            return attend(outside, arguments)
        with Meeting(outside, arguments) as meeting:
            code = act(meeting)
            meeting.end(code)
        return code
    except DifftoolError as error:
        return tell(error) if first else error.exit_code
    except KeyboardInterrupt:
        return 130

"""The process between the launcher and a recorder that may end before the ranks that it records.

`python -m difftool.parallel.keeper --parent PID -- COMMAND…` starts COMMAND, and ends when that and all that it started
have ended; its exit status is that of COMMAND. On SIGTERM, or when its parent ends, it passes SIGTERM on; it kills what
is left after a grace, or at the second SIGTERM.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import psutil

from difftool.platforms.host import adopt_orphans, die_with_parent

GRACE_S = 5
REQUESTS = (signal.SIGTERM, signal.SIGALRM)


class Keeper:
    """A command and all that comes of it: this process is the parent of what the command leaves behind."""

    def __init__(self, command: Sequence[str]):
        adopt_orphans()
        self._asked = False
        signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)  # a request waits until there is a child to pass it on to
        self._child = start(command)
        for number in REQUESTS:
            signal.signal(number, self.end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)

    def outlive(self) -> int:
        """Waits until all have ended; the exit status of the command as a shell has it."""
        status = 0
        while True:
            try:
                pid, code = os.wait()
            except ChildProcessError:
                return status if status >= 0 else 128 - status
            if pid == self._child:
                status = os.waitstatus_to_exitcode(code)

    def end(self, number: int, frame: FrameType | None) -> None:
        """The first time as a request, then for good. A handler of signals."""
        if self._asked:
            kill_descendants()
            return
        self._asked = True
        signal.alarm(GRACE_S)
        with contextlib.suppress(ProcessLookupError):  # it has ended; what it left behind has the grace
            os.kill(self._child, signal.SIGTERM)


def start(command: Sequence[str]) -> int:
    """The process id of the command, which dies with this process."""
    keeper = os.getpid()
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)
        die_with_parent(keeper)
        try:
            os.execvp(command[0], command)
        except OSError as error:
            sys.stderr.write(f"cannot start {command[0]}: {error}\n")
            os._exit(127)
    return child


def kill_descendants() -> None:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="difftool.parallel.keeper")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("command", nargs="+")
    args = parser.parse_args(argv)
    keeper = Keeper(args.command)
    die_with_parent(args.parent, signal.SIGTERM)
    return keeper.outlive()


if __name__ == "__main__":
    sys.exit(main())

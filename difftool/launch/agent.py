"""Starts the ranks of one machine and holds their pipes: the part that runs and the rank pool have in common.

The ranks are children of an agent (`difftool.parallel.agent`), which is `torch.distributed.run`. It gives its children
sessions of their own and no inherited pipes, so each rank answers through a named pipe in a temporary folder.
A rank's first line tells its process id: `{"event": "started", "pid": 123, …}`.
"""

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from difftool.files import output_error
from difftool.launch.child import POLL_S, wait_for

AGENT = (sys.executable, "-m", "difftool.parallel.agent")
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
# all that ranks of one machine say to each other stays on it
PRIVATE = {
    "GLOO_SOCKET_IFNAME": LOOPBACK,
    "NCCL_SOCKET_IFNAME": LOOPBACK,
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
STARTED = b'{"event": "started", "pid": '
LAST_WORDS_S = 10.0  # for the agent to end once its ranks are dead
TOLD = (0, -signal.SIGTERM, 128 + signal.SIGINT)  # how a rank ends that is asked to


class Agent:
    """Running ranks. Start it from a thread that outlives it: they end with the thread that started them."""

    def __init__(
        self,
        command: Sequence[str],
        ranks: int,
        *,
        log: Path,
        environment: Mapping[str, str],
        hurry: Callable[[], bool] = lambda: False,
        with_tasks: bool = False,
    ):
        """`hurry()` true cuts every wait short; `with_tasks` lets `send` reach the ranks.

        Raises OutputError where the log cannot be written.
        """
        self.ranks = ranks
        self.pids: dict[int, int] = {}
        self._hurry = hurry
        self._pending = dict.fromkeys(range(ranks), b"")
        self._selector = selectors.DefaultSelector()
        self.folder = Path(tempfile.mkdtemp(prefix="difftool-ranks-"))
        for rank in range(ranks):
            self._selector.register(open_pipe(answers_pipe(self.folder, rank)), selectors.EVENT_READ, rank)
        self._tasks = [open_pipe(tasks_pipe(self.folder, rank)) for rank in range(ranks if with_tasks else 0)]
        options = ["--ranks", str(ranks), "--folder", str(self.folder), "--parent", str(os.getpid()), "--"]
        try:
            log.write_bytes(b"")
            with log.open("ab") as sink:
                self._process = subprocess.Popen(
                    [*AGENT, *options, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    env={**environment, **PRIVATE},
                    start_new_session=True,
                )
        except OSError as error:
            self._close()
            raise output_error(log, error) from error

    def status(self) -> int | None:
        """The agent's own exit status, None while it runs."""
        return self._process.poll()

    def read(self, seconds: float) -> list[tuple[int, bytes]]:
        """Waits up to `seconds`, then takes the complete lines that are there, each with its rank."""
        lines: list[tuple[int, bytes]] = []
        for key, _ in self._selector.select(seconds):
            rank, data = key.data, b""
            with contextlib.suppress(BlockingIOError):
                while chunk := os.read(key.fd, 1 << 16):
                    data += chunk
            *whole, self._pending[rank] = (self._pending[rank] + data).split(b"\n")
            lines += [(rank, line) for line in whole if line.strip()]
        for rank, line in lines:
            if rank not in self.pids and line.startswith(STARTED):
                self.pids[rank] = json.loads(line)["pid"]
        return lines

    def send(self, rank: int, line: bytes) -> None:
        """Hands a line to a rank; returns when it is all in the pipe, or the ranks have ended."""
        rest = line + b"\n"
        while rest and self.status() is None:
            try:
                rest = rest[os.write(self._tasks[rank], rest) :]
            except BlockingIOError:  # the pipe is full: the rank is busy
                time.sleep(POLL_S)

    def gone(self, rank: int) -> bool:
        """Whether a rank that had started has ended."""
        try:
            os.kill(self.pids.get(rank, os.getpid()), 0)
        except ProcessLookupError:
            return True
        return False

    def settle(self, seconds: float) -> dict[int, int]:
        """Waits up to `seconds` for all ranks to end, then ends them.

        The exit statuses, negative for a signal, of the ranks that ended badly and not because they were told to.
        """
        ended = self.wait(seconds)
        own = [rank for rank in range(self.ranks) if ended or self.gone(rank)]
        if not ended:  # the agent itself is left alone: it writes the list
            self._signal_groups(signal.SIGKILL)
            self.wait(LAST_WORDS_S)
        try:
            failures = json.loads((self.folder / "failures.json").read_text())
        except OSError:  # the agent itself was killed
            return {}
        codes = {failure["rank"]: failure["exit_code"] for failure in failures}
        return {rank: code for rank, code in codes.items() if rank in own and code not in TOLD}

    def wait(self, seconds: float) -> bool:
        """Waits up to `seconds` for the agent, and so for every rank, to end; whether it ended."""
        return wait_for(self._process, seconds, self._hurry)

    def signal_rank(self, rank: int, number: signal.Signals) -> None:
        """Only the rank itself, if it runs."""
        if rank in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pids[rank], number)

    def end_ranks(self, grace_s: float) -> None:
        """SIGTERM to every rank and all it started, SIGKILL to those that are left after the grace."""
        if self.status() is None:
            self._signal_groups(signal.SIGTERM)
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()  # ranks that have not told their process id
            self.wait(grace_s)
        self._signal_groups(signal.SIGKILL)
        self.wait(LAST_WORDS_S)

    def stop(self, grace_s: float) -> None:
        """Ends everything and removes the folder."""
        try:
            self.end_ranks(grace_s)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        finally:
            self._close()

    def _signal_groups(self, number: signal.Signals) -> None:
        for pid in self.pids.values():
            # macOS answers EPERM for a group that holds only zombies
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)

    def _close(self) -> None:
        for key in list(self._selector.get_map().values()):
            os.close(key.fd)
        for descriptor in self._tasks:
            os.close(descriptor)
        self._selector.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def answers_pipe(folder: Path, rank: int) -> Path:
    return folder / f"answers-{rank}"


def tasks_pipe(folder: Path, rank: int) -> Path:
    return folder / f"tasks-{rank}"


def open_pipe(path: Path) -> int:
    """Makes a named pipe and opens it both ways, so that neither end ever waits for the other to come."""
    os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)

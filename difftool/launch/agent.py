"""Starts the ranks of one machine and holds their pipes: the part that runs and the rank pool have in common.

The ranks are children of an agent (`difftool.parallel.agent`), which is `torch.distributed.run`. It gives its children
sessions of their own and no inherited pipes, so each rank answers through a named pipe in a private folder.
A rank's first line tells its process id: `{"event": "started", "pid": 123, …}`.

A recorder such as `nsys profile` stands between: it starts the agent, and a keeper (`difftool.parallel.keeper`) starts
it and ends when both have ended.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from difftool.files import output_error
from difftool.launch.child import POLL_S, wait_for
from difftool.launch.pipes import Pipes, PrivateFolder, open_pipe

AGENT = (sys.executable, "-m", "difftool.parallel.agent")
KEEPER = (sys.executable, "-m", "difftool.parallel.keeper")
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
# all that ranks of one machine say to each other stays on it
PRIVATE = {
    "GLOO_SOCKET_IFNAME": LOOPBACK,
    "NCCL_SOCKET_IFNAME": LOOPBACK,
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
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
        network: Mapping[str, str] = PRIVATE,
        recorder: Sequence[str] = (),
    ):
        """`hurry()` true cuts every wait short; `with_tasks` lets `send` reach the ranks; `network` is added to the
        environment; `recorder` is a command that starts another and records it.

        Raises OutputError where the log cannot be written.
        """
        self.ranks = ranks
        self._hurry = hurry
        self._recorded = bool(recorder)
        self._folder = PrivateFolder()
        self.folder = folder = self._folder.path
        self._pipes = Pipes(ranks, folder)
        self._tasks = [open_pipe(folder / f"tasks-{rank}") for rank in range(ranks if with_tasks else 0)]
        agent, parent = [*AGENT, "--ranks", str(ranks), "--folder", str(folder)], ["--parent", str(os.getpid()), "--"]
        started = [*KEEPER, *parent, *recorder, *agent, "--"] if recorder else [*agent, *parent]
        try:
            log.write_bytes(b"")
            with log.open("ab") as sink:
                self._process = subprocess.Popen(
                    [*started, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    env={**environment, **network},
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
        return self._pipes.read(seconds)

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
            os.kill(self._pipes.pids.get(rank, os.getpid()), 0)
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
            failures = json.loads((self._folder.path / "failures.json").read_text())
        except OSError:  # the agent itself was killed
            return {}
        codes = {failure["rank"]: failure["exit_code"] for failure in failures}
        return {rank: code for rank, code in codes.items() if rank in own and code not in TOLD}

    def wait(self, seconds: float) -> bool:
        """Waits up to `seconds` for the agent, and so for every rank, to end; whether it ended."""
        return wait_for(self._process, seconds, self._hurry)

    def signal_rank(self, rank: int, number: signal.Signals) -> None:
        """Only the rank itself, if it runs."""
        if rank in self._pipes.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pipes.pids[rank], number)

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
            if self._recorded and self.status() is None:
                self._process.terminate()  # for the second time: the keeper kills all that it keeps
                wait_for(self._process, LAST_WORDS_S, lambda: False)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        finally:
            self._close()

    def _signal_groups(self, number: signal.Signals) -> None:
        for pid in self._pipes.pids.values():
            # macOS answers EPERM for a group that holds only zombies
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)

    def _close(self) -> None:
        self._pipes.close()
        for descriptor in self._tasks:
            os.close(descriptor)
        self._folder.remove()

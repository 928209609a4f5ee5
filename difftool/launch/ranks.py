"""The ranks of one run, seen as one worker: their events in one stream, and the first failure told as the failure.

A rank that fails drags the others along: they lose a peer, or are ended by the agent. So the first sign of trouble is
held back until all have ended; then the cause is the earliest error a rank reported of itself, else a rank that died
without a word, else whatever was reported.
"""

import json
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from difftool.launch import child
from difftool.launch.agent import Agent
from difftool.launch.assembly import Assembly
from difftool.launch.log import size
from difftool.launch.node_group import NodeGroup

SETTLE_S = 5.0  # between the first sign of a failure and the end of the ranks that do not end by themselves
STACK_S = 2.0  # for one rank to begin to write its stacks
STACK_END_S = 0.2  # for it to end, before the next is asked


class RankGroup:
    """Running ranks of one plan, with the interface of `Child`. `rank` is the one that failed, once that is known."""

    def __init__(
        self, agent: Agent | Assembly | NodeGroup, *, log: Path, send: Callable[[int, bytes], None] | None = None
    ):
        """With `send`, which takes a line to a rank, they stay, for the plans it brings."""
        self.rank: int | None = None
        self.stays = send is not None
        self.ranks = agent.ranks
        self._log = log
        self._agent = agent
        self._send = send
        self._early: list[tuple[int, bytes]] = []
        self._finished: dict[int, bytes] = {}
        self._errors: list[dict[str, Any]] = []
        self._status: int | None = None
        self._done = False

    def __enter__(self) -> "RankGroup":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._agent.stop(child.GRACE_S)

    def send(self, plan: Path, log: Path) -> None:
        """Hands the next plan to ranks that stay."""
        self._finished, self._done, self._log = {}, False, log
        assert self._send is not None
        for rank in range(self._agent.ranks):
            self._send(rank, child.task_line(plan, log).rstrip())

    def ready(self) -> bool:
        """Whether all live, to take a plan."""
        return self._agent.status() is None and not any(map(self._agent.gone, range(self._agent.ranks)))

    def answers(self, seconds: float) -> bool:
        """Waits up to `seconds` for a word of the plan sent to them; False where one ended before."""
        deadline = time.monotonic() + seconds
        while not self._early and self.ready() and time.monotonic() < deadline:
            self._early = self._agent.read(child.POLL_S)
        return bool(self._early) or self.ready()

    def status(self) -> int | None:
        """The exit status of the rank that failed without a word (negative for a signal), once all have ended."""
        return self._status

    def read_lines(self, seconds: float) -> list[bytes]:
        """The events of all ranks as they come; `finished` once, when every rank is; at most one `error`, the cause."""
        early, self._early = [*self._early, *self._agent.read(0.0)], []
        ended = self._ended()  # before reading: what they said before they ended is read now
        lines = self._sort([*early, *self._agent.read(0.0 if early else seconds)])
        if self._status is None and self._in_trouble(ended):
            lines += self._settle()
        if len(self._finished) == self._agent.ranks and not self._done:
            self._done = True
            lines += [self._finished[0]]
        return lines

    def wait(self, seconds: float) -> bool:
        return self._agent.wait(seconds)

    def ask_for_stacks(self) -> None:
        """One rank after the other, so that the stacks do not mix; each under its name in the log."""
        for rank in range(self._agent.ranks):
            self._note(f"rank {rank}:")
            start, until = size(self._log), time.monotonic() + STACK_S
            self._agent.signal_rank(rank, signal.SIGUSR1)
            while size(self._log) == start and time.monotonic() < until:
                self._agent.wait(child.POLL_S)
            self._agent.wait(STACK_END_S)
            if size(self._log) == start:
                self._note("  no answer: the process has ended, or the system has stopped it")

    def _note(self, line: str) -> None:
        with self._log.open("a") as log:
            log.write(f"{line}\n")

    def _sort(self, lines: Sequence[tuple[int, bytes]]) -> list[bytes]:
        """Puts ends and errors aside; the rest is passed on."""
        passed: list[bytes] = []
        for rank, line in lines:
            if line.startswith(b'{"event": "finished"'):
                self._finished[rank] = line
            elif line.startswith(b'{"event": "error"'):
                self._errors.append(json.loads(line))
            else:
                passed.append(line)
        return passed

    def _ended(self) -> set[int]:
        ranks = range(self._agent.ranks)
        return set(ranks) if self._agent.status() is not None else {rank for rank in ranks if self._agent.gone(rank)}

    def _in_trouble(self, ended: set[int]) -> bool:
        return bool(self._errors or ended - self._finished.keys())

    def _settle(self) -> list[bytes]:
        """Waits until all ranks have ended, and finds the cause."""
        codes = self._agent.settle(SETTLE_S)
        passed = self._sort(self._agent.read(0.0))
        if len(self._finished) == self._agent.ranks:
            return passed
        spoke = {error["rank"] for error in self._errors} | set(self._finished)
        silent = {rank: code for rank, code in codes.items() if rank not in spoke}
        own = [error for error in self._errors if not error.get("lost_peer")]
        if own or (self._errors and not silent):
            cause = min(own or self._errors, key=lambda error: float(error["time"]))
            self.rank = cause["rank"]
            return [*passed, json.dumps(cause).encode()]
        self.rank, self._status = next(iter(silent.items()), (None, self._agent.status() or 0))
        return passed

"""The ranks of several machines, seen from the first: those here, and those of every other node through its channel."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from difftool.files import write_atomic
from difftool.launch.agent import LAST_WORDS_S, Agent
from difftool.launch.failure import LOST
from difftool.launch.meeting import Channel
from difftool.launch.node_meeting import NodeMeeting, network, rank_command, rank_environment, share
from difftool.launch.records import PERF_FILE
from difftool.planning.plan import Plan

POLL_S = 0.05
STORE = "group"  # the file in the ranks' folder that says where the first rank listens; `parallel.group` writes it


class NodeGroup:
    """Running ranks, with the interface of `Agent`. A node that is gone takes its ranks along."""

    def __init__(
        self,
        command: Sequence[str],
        plan: Plan,
        meeting: NodeMeeting,
        *,
        log: Path,
        plan_file: Path,
        hurry: Callable[[], bool],
        on_signal: Callable[[int], None],
    ):
        """For nodes that have the plan. `hurry()` true cuts every wait short; `on_signal` hears of signals that other
        nodes got. Raises OutputError where the log cannot be written.
        """
        self.ranks = plan.degrees.num_gpus
        self._hurry = hurry
        self._on_signal = on_signal
        self._log = log
        self._lines: list[tuple[int, bytes]] = []
        self._store_told = False
        told = rank_command(command, plan, plan_file, node=0, address=meeting.address)
        reached = network(os.environ, meeting.address)
        environment = rank_environment(os.environ, plan)
        self._here = Agent(told, share(plan), log=log, environment=environment, hurry=hurry, network=reached)
        self._far = [FarNode(channel, node, share(plan)) for node, channel in sorted(meeting.channels.items())]
        self._tell({"start": True})

    def status(self) -> int | None:
        """0 once every rank of every node has ended, None before."""
        ended = self._here.status() is not None and all(node.ended for node in self._far)
        return 0 if ended else None

    def read(self, seconds: float) -> list[tuple[int, bytes]]:
        """Waits up to `seconds`, then takes the complete lines that are there, each with its rank."""
        deadline = time.monotonic() + seconds
        while True:
            self._listen()
            self._lines += self._here.read(0.0 if self._lines else min(POLL_S, seconds))
            if self._lines or time.monotonic() >= deadline:
                lines, self._lines = self._lines, []
                return lines

    def gone(self, rank: int) -> bool:
        """Whether a rank that had started has ended."""
        node = self._node(rank)
        if node is not None:
            return node.ended or rank in node.gone
        return self._here.status() is not None or self._here.gone(rank)

    def settle(self, seconds: float) -> dict[int, int]:
        """Waits up to `seconds` for all ranks to end, then ends them.

        The exit statuses, negative for a signal, of the ranks that ended badly and not because they were told to.
        """
        self._tell({"settle": seconds})
        codes = dict(self._here.settle(seconds))
        self._until(lambda node: node.settled is not None, seconds + 2 * LAST_WORDS_S)
        for node in self._far:
            lost = dict.fromkeys(node.ranks, LOST)
            codes |= lost if node.settled is None else node.settled
        perf = next((node.perf for node in self._far if node.perf is not None), None)
        if perf is not None:  # of the rank that failed by itself
            write_atomic(self._log.with_name(PERF_FILE), perf.encode())
        return codes

    def wait(self, seconds: float) -> bool:
        """Waits up to `seconds` for every rank to end; whether they have ended."""
        deadline = time.monotonic() + seconds
        self._listen()
        while self.status() is None and time.monotonic() < deadline and not self._hurry():
            self._here.wait(POLL_S)
            time.sleep(POLL_S if self._here.status() is not None else 0.0)
            self._listen()
        return self.status() is not None

    def signal_rank(self, rank: int, number: signal.Signals) -> None:
        """Only the rank itself, if it runs."""
        node = self._node(rank)
        if node is None:
            self._here.signal_rank(rank, number)
        else:
            node.channel.send({"signal": [rank - node.ranks.start, number]})

    def stop(self, grace_s: float) -> None:
        """Ends every rank; the commands of the other nodes stay, to hear the exit code."""
        self._tell({"stop": grace_s})
        try:
            self._here.stop(grace_s)
        finally:
            self._until(lambda node: node.stopped, grace_s + 2 * LAST_WORDS_S)

    def _node(self, rank: int) -> "FarNode | None":
        return next((node for node in self._far if rank in node.ranks), None)

    def _tell(self, order: dict[str, Any]) -> None:
        for node in self._far:
            node.channel.send(order)

    def _until(self, done: "Callable[[FarNode], bool]", seconds: float) -> bool:
        """Listens up to `seconds` until every node that is not gone is so; whether all of them are."""
        deadline = time.monotonic() + seconds
        self._listen()
        while not all(done(node) or node.channel.gone for node in self._far):
            if time.monotonic() > deadline or self._hurry():
                return False
            time.sleep(POLL_S)
            self._listen()
        return True

    def _listen(self) -> None:
        """Takes in what the nodes say, and brings them where the first rank listens."""
        store = self._here.folder / STORE
        if not self._store_told and store.exists():
            self._store_told = True
            self._tell({"store": store.read_text()})
        for node in self._far:
            for message in node.channel.read(0.0):
                self._lines += node.take(message)
                if "signal" in message:
                    self._on_signal(message["signal"])
                if "log" in message:
                    with self._log.open("a") as log:
                        log.write(message["log"])


class FarNode:
    """What is known of another node's ranks. `settled` holds how they ended, once they have."""

    def __init__(self, channel: Channel, node: int, share: int):
        self.channel = channel
        self.ranks = range(node * share, (node + 1) * share)
        self.gone: set[int] = set()
        self.settled: dict[int, int] | None = None
        self.perf: str | None = None
        self.stopped = False
        self._status: int | None = None

    @property
    def ended(self) -> bool:
        return self._status is not None or self.channel.gone

    def take(self, message: dict[str, Any]) -> list[tuple[int, bytes]]:
        """Notes what a message says; the lines of ranks in it."""
        self._status = message.get("ended", self._status)
        self.perf = message.get("perf", self.perf)
        self.stopped = self.stopped or "stopped" in message
        self.gone |= {self.ranks.start + rank for rank in message.get("gone", ())}
        if "settled" in message:
            self.settled = {self.ranks.start + rank: code for rank, code in message["settled"]}
        return [(self.ranks.start + rank, line.encode()) for rank, line in message.get("lines", ())]

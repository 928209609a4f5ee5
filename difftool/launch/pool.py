"""Ranks that stay: started once, they run one named function after the other, all at the same time."""

import json
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from difftool.errors import DifftoolError, Stalled, WorkerCrashed
from difftool.launch.agent import Agent
from difftool.launch.child import POLL_S
from difftool.launch.failure import describe_status
from difftool.launch.log import size, tail

RANK = (sys.executable, "-m", "difftool.parallel.pool_rank")
START_S = 300.0  # for ranks to start, beside the time a task may take
OTHERS_S = 20.0  # for the other ranks to answer once one has failed: they may wait for it
GRACE_S = 2.0
TICK_S = 0.2
STACK_S = 2.0  # for a rank to begin to write its stacks
STACK_END_S = 0.3  # for it to end
LOG_LINES = 60


class RankFailed(DifftoolError):
    """A function raised in a rank. `rank` is which, `kind` the class of its exception."""

    def __init__(self, rank: int, error: Mapping[str, str]):
        quoted = "".join(f"\n  | {line}" for line in error["traceback"].splitlines())
        super().__init__(f"rank {rank}: {error['kind']}: {error['message']}{quoted}")
        self.rank = rank
        self.kind = error["kind"]


class RankPool:
    """`ranks` CPU processes, started by the first task and again by the first one after a crash or a timeout.

    A context manager; use it from one thread, which outlives it. The log holds what the ranks print.
    """

    def __init__(self, ranks: int, *, log: Path, environment: Mapping[str, str]):
        self.ranks = ranks
        self._log = log
        self._environment = environment
        self._agent: Agent | None = None
        self._tasks = 0

    def __enter__(self) -> "RankPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the ranks; the next task starts new ones."""
        if self._agent is not None:
            agent, self._agent = self._agent, None
            agent.stop(GRACE_S)

    def run(self, call: str, *, world: int | None = None, timeout_s: float = 300.0, **arguments: Any) -> list[Any]:
        """Calls `package.module:function(world, **arguments)` in the first `world` ranks, by default in all of them.

        Returns what each returned, by rank. Raises RankFailed for the first rank that raised, WorkerCrashed for one
        that died, Stalled where some have no answer in time; ranks that did not answer are ended.
        """
        count = self.ranks if world is None else world
        assert 1 <= count <= self.ranks, (count, self.ranks)
        agent, patience = self._started(timeout_s)
        self._tasks += 1
        task = {"task": self._tasks, "world": count, "call": call, "arguments": arguments}
        for rank in range(count):
            agent.send(rank, json.dumps(task).encode())
        answers = self._collect(agent, count, patience)
        silent = [rank for rank in range(count) if rank not in answers]
        failed = [rank for rank, answer in answers.items() if "error" in answer]
        own = [rank for rank in failed if not answers[rank]["lost_peer"]]
        if silent and not own:  # who lost a peer is no cause: the peer is one of the silent
            raise self._no_answer(agent, silent, timeout_s)
        if silent:
            self.close()
        cause = next(iter(own or failed), None)
        if cause is not None:
            raise RankFailed(cause, answers[cause]["error"])
        return [answers[rank]["result"] for rank in range(count)]

    def _started(self, timeout_s: float) -> tuple[Agent, float]:
        """The agent, and how long to wait for answers: a pool that has just been started gets more time."""
        if self._agent is not None and self._agent.status() is None:
            return self._agent, timeout_s
        self.close()
        self._agent = Agent(RANK, self.ranks, log=self._log, environment=self._environment, with_tasks=True)
        return self._agent, timeout_s + START_S

    def _collect(self, agent: Agent, count: int, patience: float) -> dict[int, dict[str, Any]]:
        """Answers to the current task in the order they came; fewer than `count` where ranks died or time is up."""
        answers: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + patience
        while len(answers) < count and time.monotonic() < deadline:
            ended = agent.status() is not None or any(map(agent.gone, range(count)))
            for rank, line in agent.read(TICK_S):
                answer = json.loads(line)
                if answer.get("task") == self._tasks:
                    answers[rank] = answer
                    if "error" in answer:
                        deadline = min(deadline, time.monotonic() + OTHERS_S)
            if ended:
                break
        return answers

    def _no_answer(self, agent: Agent, silent: list[int], timeout_s: float) -> DifftoolError:
        """Ends the ranks and says why there is no answer."""
        if agent.status() is None and not any(map(agent.gone, silent)):
            stacks = self._stacks(agent, silent)
            self.close()
            return Stalled(f"no answer from rank {', '.join(map(str, silent))} in {timeout_s:g} s{stacks}")
        codes = agent.settle(GRACE_S)
        rank, code = next(iter(codes.items()), (None, agent.status() or 0))
        self.close()
        who = "the pool" if rank is None else f"rank {rank}"
        return WorkerCrashed(f"{who} {describe_status(code)}{_quoted(tail(self._log, LOG_LINES))}")

    def _stacks(self, agent: Agent, ranks: list[int]) -> str:
        """What the ranks write to the log when asked where they are."""
        start = size(self._log)
        for rank in ranks:
            with self._log.open("a") as log:
                log.write(f"rank {rank}:\n")
            before, until = size(self._log), time.monotonic() + STACK_S
            agent.signal_rank(rank, signal.SIGUSR1)
            while size(self._log) == before and time.monotonic() < until:
                agent.wait(POLL_S)
            agent.wait(STACK_END_S)
        return _quoted(tail(self._log, LOG_LINES, start=start))


def _quoted(text: str) -> str:
    return "".join(f"\n  | {line}" for line in text.splitlines())

"""What every node but the first does: it runs its ranks as the first one asks.

Once it has the plan (`difftool.launch.node_meeting`) it is told `{"start": true}`, `{"store": "port"}` for its ranks,
`{"signal": [rank, 10]}`, `{"settle": 5.0}` (seconds for ranks to end by themselves), `{"stop": 5.0}` (between SIGTERM
and SIGKILL) and at last `{"end": exit code}`. It tells `{"lines": [[rank, "…"]]}`, `{"log": "…"}`, `{"gone": [rank]}`,
`{"ended": status}`, `{"settled": [[rank, status]]}`, `{"perf": "…"}` of a rank that failed, `{"stopped": true}`, and
`{"signal": 15}` that this command got. Ranks count from 0 on every node here.
"""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from difftool.errors import DifftoolError, PlanError, WorkerCrashed
from difftool.files import write_atomic
from difftool.launch import node_meeting
from difftool.launch.agent import Agent
from difftool.launch.child import GRACE_S, WORKER
from difftool.launch.environment import check_devices
from difftool.launch.meeting import Channel
from difftool.launch.node_group import STORE
from difftool.launch.node_meeting import installed, keep_alive, network, rank_command, rank_environment, share
from difftool.launch.pipes import PrivateFolder
from difftool.launch.records import LOG_FILE, PERF_FILE, PLAN_FILE
from difftool.launch.resume import check_same_work
from difftool.launch.signals import SignalWatch
from difftool.planning.plan import Nodes, Plan
from difftool.planning.todo import TODO_FILE

TICK_S = 0.05
RETRY_S = 0.5
ANSWER_S = 10.0  # for the first node to welcome this one
SHARED_S = 10.0  # a file that another machine has just written may take a moment to be seen
LOG_BYTES = 64 * 1024  # sent at once

Replan = Callable[[Plan], Plan]


def attend_node(nodes: Nodes, replan: Replan, *, worker: Sequence[str] = WORKER) -> int:
    """Takes part in the run of the first node until all is over; the exit code of all.

    `replan` makes this node's own plan of the first one's, with its drawn seeds. Raises WorkerCrashed where the first
    node does not come, or is gone before it has told the exit code, PlanError where it refuses this one.
    """
    with SignalWatch() as watch, contextlib.ExitStack() as ends:
        channel = join(nodes, watch)
        if channel is not None:
            ends.callback(channel.close)
            code = Node(channel, nodes, watch, worker).serve(replan)
            if code is not None:
                return code
    if watch.received:
        return 128 + watch.received[0]
    raise WorkerCrashed(
        f"node 0 of the {nodes.count} at {nodes.endpoint} is gone; this one's ranks were ended",
        hint="see what the command says there; --resume makes what is left of the run",
    )


def join(nodes: Nodes, watch: SignalWatch) -> Channel | None:
    """The channel to the first node; None where a signal came first."""
    until = time.monotonic() + node_meeting.COMING_S
    while time.monotonic() < until and not watch.received:
        with contextlib.suppress(OSError):  # its machine, its name or its command is not there yet
            connection = socket.create_connection((nodes.host, nodes.port), timeout=ANSWER_S)
            connection.settimeout(None)
            keep_alive(connection)
            channel = Channel(connection)
            channel.send({"node": nodes.rank, "nodes": nodes.count, "software": installed()})
            answer = next(iter(channel.read(ANSWER_S)), {})
            if "refused" in answer:
                channel.close()
                raise PlanError(str(answer["refused"]), hint="all nodes run the same command but for --node-rank")
            if "welcome" in answer:
                return channel
            channel.close()
        time.sleep(RETRY_S)
    if watch.received:
        return None
    raise WorkerCrashed(
        f"node 0 of the {nodes.count} did not come to {nodes.endpoint} in {node_meeting.COMING_S:g} s",
        hint="it listens there once its command has made the plan; check the address, the port and the network",
    )


class Node:
    """This node's ranks, ruled by a channel."""

    def __init__(self, channel: Channel, nodes: Nodes, watch: SignalWatch, worker: Sequence[str]):
        self._channel = channel
        self._nodes = nodes
        self._watch = watch
        self._worker = worker
        self._agent: Agent | None = None
        self._plan: Plan | None = None
        self._told: set[str | int] = set()
        self._logged = 0
        self._folder = Path()

    def serve(self, replan: Replan) -> int | None:
        """Obeys until the end: the exit code, None where the first node is gone or a second signal came."""
        folder = PrivateFolder()
        self._folder = folder.path
        try:
            while not (self._channel.gone or self._watch.again()):
                for order in self._channel.read(TICK_S):
                    if "end" in order:
                        return int(order["end"])
                    self._obey(order, replan)
                for number in self._watch.received[:1]:
                    self._once("signal", {"signal": number})
                self._report()
            return None
        finally:
            self._stop(GRACE_S if not self._watch.again() else 0.0)
            folder.remove()

    def _obey(self, order: Mapping[str, Any], replan: Replan) -> None:
        if "plan" in order:
            self._channel.send(self._prepare(order["plan"], order["todo"], Path(order["records"]), replan))
        elif "start" in order:
            self._start()
        elif "stop" in order:
            self._stop(order["stop"])
            self._send_log()
            self._channel.send({"stopped": True})
        elif self._agent is None:
            return
        elif "store" in order:
            write_atomic(self._agent.folder / STORE, order["store"].encode())
        elif "signal" in order:
            self._agent.signal_rank(order["signal"][0], signal.Signals(order["signal"][1]))
        elif "settle" in order:
            self._settle(self._agent, order["settle"])

    def _prepare(self, plan: str, todo: str, records: Path, replan: Replan) -> dict[str, Any]:
        """Writes this node's plan: the first one's, with the places that files have here."""
        theirs = Plan.model_validate_json(plan)
        try:
            mine = replan(theirs)
            check_devices(os.environ, mine.devices)
            check_same_work(mine, theirs, "node 0", hint="give all nodes the same recipe and flags")
            if mine.degrees != theirs.degrees:
                raise PlanError("its parallel degrees are not those of node 0", hint="give all nodes the same")
            if self._leads(theirs) and not _sees(records / PLAN_FILE, plan):
                raise PlanError(
                    f"it does not see {records}, and writes media too (dp={theirs.degrees.dp})",
                    hint="put output.dir where all nodes have the same files, or use dp=1",
                )
        except DifftoolError as error:
            return {"refused": error.message, "hint": error.hint}
        places = ("model", "loras", "items", "pictures", "devices")
        own = {name: getattr(mine, name) for name in places}
        self._plan = theirs.model_copy(update={**own, "nodes": self._nodes})
        (self._folder / TODO_FILE).write_text(todo)
        (self._folder / PLAN_FILE).write_text(self._plan.model_dump_json(by_alias=True))
        return {"ready": True}

    def _leads(self, plan: Plan) -> bool:
        """Whether a rank here writes the media of a replica."""
        first, replica = self._nodes.rank * share(plan), plan.degrees.num_gpus // plan.degrees.dp
        return plan.output.save and any(rank % replica == 0 for rank in range(first, first + share(plan)))

    def _start(self) -> None:
        assert self._plan is not None
        peer, own = self._channel.ends()
        file = self._folder / PLAN_FILE
        self._agent = Agent(
            rank_command(self._worker, self._plan, file, node=self._nodes.rank, address=peer),
            share(self._plan),
            log=self._folder / LOG_FILE,
            environment=rank_environment(os.environ, self._plan),
            hurry=self._watch.again,
            network=network(os.environ, own),
        )

    def _settle(self, agent: Agent, seconds: float) -> None:
        codes = agent.settle(seconds)
        self._report()
        perf = self._folder / PERF_FILE
        if perf.exists():
            self._channel.send({"perf": perf.read_text()})
        self._channel.send({"settled": list(codes.items())})

    def _report(self) -> None:
        """Tells what the ranks have said, and which of them have ended."""
        agent = self._agent
        if agent is None:
            return
        status, gone = agent.status(), [rank for rank in range(agent.ranks) if agent.gone(rank)]
        lines = [[rank, line.decode("utf-8", "replace")] for rank, line in agent.read(0.0)]
        if lines:
            self._channel.send({"lines": lines})
        self._send_log()
        for rank in gone:
            self._once(rank, {"gone": [rank]})
        if status is not None:
            self._once("ended", {"ended": status})

    def _once(self, what: str | int, message: Mapping[str, Any]) -> None:
        if what not in self._told:
            self._told.add(what)
            self._channel.send(message)

    def _send_log(self) -> None:
        with contextlib.suppress(FileNotFoundError), (self._folder / LOG_FILE).open("rb") as log:
            log.seek(self._logged)
            while data := log.read(LOG_BYTES):
                self._logged += len(data)
                self._channel.send({"log": data.decode("utf-8", "replace")})

    def _stop(self, grace_s: float) -> None:
        agent, self._agent = self._agent, None
        if agent is not None:
            agent.stop(grace_s)


def _sees(file: Path, text: str) -> bool:
    """Whether this node has the file that the first one wrote."""
    until = time.monotonic() + SHARED_S
    while True:
        with contextlib.suppress(OSError):
            if file.read_text() == text:
                return True
        if time.monotonic() > until:
            return False
        time.sleep(RETRY_S)

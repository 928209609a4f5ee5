"""Where the machines of one run find each other: the first one listens at `launch.rdzv_endpoint`, and keeps a channel
to each of the others until all is over. What crosses it is JSON: no code, no command and no pickle.

The others say `{"node": 1, "nodes": 2, "software": {…}}` and are told `{"welcome": true}`. Then they get the plan
(`{"plan": …, "todo": …, "records": …}`), answer `{"ready": true}` or `{"refused": "why", "hint": …}`, and do what
`difftool.launch.node` lists.
"""

import contextlib
import errno
import ipaddress
import select
import socket
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil  # type: ignore[import-untyped]

from difftool.errors import DifftoolError, PlanError, WorkerCrashed
from difftool.launch.agent import PRIVATE
from difftool.launch.environment import worker_environment
from difftool.launch.meeting import HELLO_S, Channel
from difftool.planning.plan import Nodes, Plan
from difftool.planning.todo import TODO_FILE

COMING_S = 300.0  # for every node's command to be started
READY_S = 300.0  # for a node that has come to make its own plan
TICK_S = 0.1
SOFTWARE = ("difftool", "torch", "diffusers", "transformers")
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
# a machine that is switched off says no farewell: it is missed after about 20 s
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPALIVE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}


class NodeMeeting:
    """The first node's side, as a context manager. `channels` holds one for each of the other nodes that came."""

    def __init__(self, nodes: Nodes):
        """Raises PlanError where it cannot listen."""
        self.nodes = nodes
        self.channels: dict[int, Channel] = {}
        self._until = time.monotonic() + COMING_S
        self._listener = _listen(nodes)
        self.address: str = self._listener.getsockname()[0]

    def __enter__(self) -> "NodeMeeting":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tells every node that has come the exit code of all."""
        code = 0 if value is None else 130 if isinstance(value, KeyboardInterrupt) else getattr(value, "exit_code", 1)
        self._listener.close()
        for channel in self.channels.values():
            channel.send({"end": code})
            channel.close()

    @property
    def missing(self) -> list[int]:
        return [node for node in range(1, self.nodes.count) if node not in self.channels]

    def gather(self) -> None:
        """Waits for all nodes. Raises WorkerCrashed for those that do not come, PlanError for one that is another's."""
        while self.missing:
            left = self._until - time.monotonic()
            if left <= 0:
                raise self._not_here()
            if select.select([self._listener], [], [], min(left, TICK_S))[0]:
                self._welcome(self._listener.accept()[0])
            self.channels = {node: channel for node, channel in self.channels.items() if not _left(channel)}

    def prepare(self, plan: Plan, records: Path) -> None:
        """Hands the plan to every node. Raises PlanError where one cannot take part, WorkerCrashed where it is gone."""
        text, todo = plan.model_dump_json(by_alias=True, indent=2), (records / TODO_FILE).read_text()
        for channel in self.channels.values():
            channel.send({"plan": text, "todo": todo, "records": str(records)})
        until = time.monotonic() + READY_S
        for node, channel in self.channels.items():
            answer = _answer(channel, until)
            if answer is None or "signal" in answer:
                late = "" if answer or channel.gone else f" in {READY_S:g} s"
                message = f"node {node} did not take the plan{late}"
                raise WorkerCrashed(message, hint="see what the command says there")
            if "refused" in answer:
                raise PlanError(f"node {node}: {answer['refused']}", hint=answer["hint"])

    def _welcome(self, connection: socket.socket) -> None:
        """Takes in a node. Whoever says nothing of the kind is left alone."""
        keep_alive(connection)
        channel = Channel(connection)
        hello = next(iter(channel.read(HELLO_S)), {})
        node, count = hello.get("node"), hello.get("nodes")
        if not isinstance(node, int) or not isinstance(count, int):
            channel.close()
            return
        refusal = self._refusal(node, count, hello.get("software"))
        channel.send({"refused": refusal} if refusal else {"welcome": True})
        if refusal:
            channel.close()
            raise PlanError(refusal, hint="all nodes run the same command, each with its own --node-rank")
        self.channels[node] = channel

    def _refusal(self, node: int, count: int, software: object) -> str | None:
        if count != self.nodes.count:
            return f"node {node} was started with nnodes={count}, node 0 with nnodes={self.nodes.count}"
        if node not in self.missing:
            return f"two commands say that they are node {node} of the {count}"
        if software != installed():
            return f"node {node} has {_shown(software)}, node 0 has {_shown(installed())}"
        return None

    def _not_here(self) -> DifftoolError:
        came = ", ".join(map(str, [0, *sorted(self.channels)]))
        missing = ", ".join(map(str, self.missing))
        return WorkerCrashed(
            f"node {missing} of the {self.nodes.count} did not come to {self.nodes.endpoint} in {COMING_S:g} s "
            f"(here: {came})",
            hint=f"start the same command there with --node-rank; it must reach {self.address} port {self.nodes.port}",
        )


def keep_alive(connection: socket.socket) -> None:
    """Lets a connection end when the other machine does. The system's options differ; those it has are set."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def installed() -> dict[str, str]:
    """What must be the same on every node."""
    found = {}
    for name in SOFTWARE:
        with contextlib.suppress(metadata.PackageNotFoundError):  # a checkout that is not installed
            found[name] = metadata.version(name)
    return found


def share(plan: Plan) -> int:
    """Ranks of each node."""
    assert plan.nodes is not None
    return plan.degrees.num_gpus // plan.nodes.count


def rank_command(command: Sequence[str], plan: Plan, plan_file: Path, *, node: int, address: str) -> list[str]:
    """The worker of a rank on a node; the first rank of all listens at `address` for the others."""
    first = node * share(plan)
    return [*command, str(plan_file), "--beyond", f"{first}:{plan.degrees.num_gpus}:{address}"]


def rank_environment(base: Mapping[str, str], plan: Plan) -> dict[str, str]:
    return worker_environment(base, threads=plan.threads, offline=plan.offline, devices=plan.devices)


def network(base: Mapping[str, str], address: str) -> dict[str, str]:
    """The variables that keep the ranks on the interface of this address of the node, unless the user names others."""
    cards = [name for name, found in psutil.net_if_addrs().items() if any(one.address == address for one in found)]
    chosen = {name: base.get(name, cards[0]) for name in INTERFACES if name in base or cards}
    return {**{name: value for name, value in PRIVATE.items() if name not in INTERFACES}, **chosen}


def _listen(nodes: Nodes) -> socket.socket:
    where = f"launch.rdzv_endpoint={nodes.endpoint}"
    try:
        family, _, _, _, address = socket.getaddrinfo(nodes.host, nodes.port, type=socket.SOCK_STREAM)[0]
        if ipaddress.ip_address(str(address[0]).partition("%")[0]).is_unspecified:
            raise PlanError(f"{where} is every address, which no other node can go to", hint="name one of node 0's")
        return socket.create_server(address[:2], family=family, backlog=nodes.count)
    except socket.gaierror as error:
        raise PlanError(f"{where}: {nodes.host} is no name here ({error.strerror})", hint="give an address") from error
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        hint = "choose another port" if taken else "this is node 0, which listens there: give an address of its own"
        raise PlanError(f"{where}: node 0 cannot listen there ({error.strerror})", hint=hint) from error


def _left(channel: Channel) -> bool:
    """Whether a node that was here has gone. One that speaks before it has the plan was asked to end."""
    if channel.read(0.0) or channel.gone:
        channel.close()
        return True
    return False


def _answer(channel: Channel, until: float) -> dict[str, Any] | None:
    while not channel.gone and time.monotonic() < until:
        for message in channel.read(TICK_S):
            return message
    return None


def _shown(software: object) -> str:
    return ", ".join(f"{name} {value}" for name, value in software.items()) if isinstance(software, dict) else "?"

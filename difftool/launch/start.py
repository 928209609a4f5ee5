"""Starts the worker of a plan: one process, or a group of ranks."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from difftool.errors import PlanError
from difftool.launch.agent import Agent
from difftool.launch.assembly import Assembly
from difftool.launch.child import STREAM, Child
from difftool.launch.environment import check_devices, worker_environment
from difftool.launch.meeting import Meeting
from difftool.launch.node_group import NodeGroup
from difftool.launch.node_meeting import NodeMeeting
from difftool.launch.nsys import nsys_command, under_nsys
from difftool.launch.outside import check_alone
from difftool.launch.ranks import RankGroup
from difftool.planning.plan import Plan

Worker: TypeAlias = Child | RankGroup


def start_worker(
    command: Sequence[str],
    plan: Plan,
    log: Path,
    *,
    plan_file: Path | None,
    hurry: Callable[[], bool],
    holds: Sequence[int] = (),
) -> Worker:
    """A worker that makes `plan_file`; without one it stays, and makes what it is sent of plans that load alike.

    `hurry()` true cuts every wait for its end short; `holds` are descriptors that a single process keeps open. Raises
    PlanError inside another world, and for devices that are named twice.
    """
    check_alone(os.environ)
    check_devices(os.environ, plan.devices)
    if plan.nodes is not None:
        message = f"launch.nnodes={plan.nodes.count}: only `difftool generate` runs on several machines"
        raise PlanError(message, hint="use nnodes=1 here")
    environment = worker_environment(os.environ, threads=plan.threads, offline=plan.offline, devices=plan.devices)
    ranks, recorder = plan.degrees.num_gpus, nsys_command(plan, log.parent.name) if under_nsys(plan) else ()
    if ranks == 1 and plan.launcher != "torchrun" and not recorder:
        return Child(command, plan_file, log=log, environment=environment, hurry=hurry, holds=holds)
    told, stays = (*command, str(plan_file or STREAM)), plan_file is None
    agent = Agent(told, ranks, log=log, environment=environment, hurry=hurry, with_tasks=stays, recorder=recorder)
    return RankGroup(agent, log=log, send=agent.send if stays else None)


def assemble_worker(
    command: Sequence[str],
    plan: Plan,
    log: Path,
    *,
    plan_file: Path,
    meeting: Meeting | NodeMeeting,
    hurry: Callable[[], bool],
    on_signal: Callable[[int], None],
) -> RankGroup:
    """A worker that makes `plan_file` with the processes of a world that is there, or on several machines, all of which
    have come. Raises PlanError for devices that are named twice.
    """
    check_devices(os.environ, plan.devices)
    if isinstance(meeting, NodeMeeting):
        nodes = NodeGroup(command, plan, meeting, log=log, plan_file=plan_file, hurry=hurry, on_signal=on_signal)
        return RankGroup(nodes, log=log)
    told = (*command, str(plan_file))
    pinned = {"threads": plan.threads, "offline": plan.offline, "devices": plan.devices}
    assembly = Assembly(told, meeting, log=log, pinned=pinned, hurry=hurry, on_signal=on_signal)
    return RankGroup(assembly, log=log)

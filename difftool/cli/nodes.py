"""`difftool generate` on several machines: the first node plans, keeps the records and talks; the others lend it their
ranks, say what they wait for, and end with the same exit code.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from difftool.cli.options import RecipeArguments
from difftool.cli.prepare import plan_as_node
from difftool.cli.progress import Mode
from difftool.launch.node import attend_node
from difftool.launch.node_meeting import COMING_S, NodeMeeting
from difftool.planning.plan import Nodes, Plan

if TYPE_CHECKING:
    from difftool.launch.outside import Outside


@contextmanager
def lead(nodes: Nodes, mode: Mode) -> Iterator[NodeMeeting]:
    """On the first node: all the others, once they have come. They hear how the context ends."""
    with NodeMeeting(nodes) as meeting:
        if mode in ("plain", "live"):
            others = ", ".join(map(str, meeting.missing))
            words = f"listens at {nodes.endpoint} ({meeting.address}); waits up to {COMING_S:g} s for node {others}"
            print(words, file=sys.stderr, flush=True)
        meeting.gather()
        yield meeting


def lend(arguments: RecipeArguments, nodes: Nodes, world: "Outside | None") -> int:
    """On any other node: runs its ranks for the first one; the exit code of all."""

    def replan(recorded: Plan) -> Plan:
        return plan_as_node(arguments, world, recorded)

    plan_as_node(arguments, world)  # what is wrong with the recipe is told here too
    name = f"node {nodes.rank} of {nodes.count}"
    print(f"{name}: joins node 0 at {nodes.endpoint}, which tells how the run goes", file=sys.stderr, flush=True)
    code = attend_node(nodes, replan)
    print(f"{name}: node 0 ended the run with exit code {code}", file=sys.stderr)
    return code

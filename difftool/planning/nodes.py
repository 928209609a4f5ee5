"""How many machines and which devices a run takes, where machines meet, and what of `launch` does not go with the
degrees.
"""

from collections.abc import Mapping
from typing import Any

from difftool.errors import Problem
from difftool.planning.degrees import divisors
from difftool.planning.plan import Degrees, Nodes


def plan_nodes(launch: Mapping[str, Any]) -> Nodes | None:
    """The machines of a `launch` section; None for one."""
    if launch["nnodes"] == 1:
        return None
    host, _, port = launch["rdzv_endpoint"].rpartition(":")
    return Nodes(count=launch["nnodes"], rank=launch["node_rank"], host=host.strip("[]"), port=int(port))


def device_of(launch: Mapping[str, Any]) -> str:
    """The kind of device that is asked for: indices are CUDA's."""
    named = launch["device"] == "auto" and launch["devices"] is not None
    return "cuda" if named else str(launch["device"])


def counted(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The `parallel` section, an open num_gpus being one for each of `launch.devices` on every node."""
    parallel, launch = recipe["parallel"], recipe["launch"]
    if parallel["num_gpus"] != "auto" or launch["devices"] is None:
        return dict(parallel)
    return {**parallel, "num_gpus": len(launch["devices"]) * launch["nnodes"]}


def check_launch(recipe: Mapping[str, Any], degrees: Degrees, *, keep_going: bool) -> list[Problem]:
    """Every value of `launch`, and every flag of the run, that these degrees cannot follow."""
    launch, ranks = recipe["launch"], degrees.num_gpus
    nodes, found = launch["nnodes"], list[Problem]()
    if ranks % nodes:
        below, above = [f"num_gpus={n}" for n in (ranks - ranks % nodes, ranks - ranks % nodes + nodes)]
        fits = above if ranks < nodes else f"{below} or {above}"
        valid = ", ".join(map(str, divisors(ranks)))
        message = f"launch.nnodes={nodes} does not divide num_gpus={ranks}, which counts those of all nodes"
        found.append(Problem("launch.nnodes", f"{message}; use {fits}, or nnodes: {valid}"))
    if nodes == 1 and launch["rdzv_endpoint"] is not None:
        message = "launch.rdzv_endpoint is where several nodes meet; give nnodes too, or leave it out"
        found.append(Problem("launch.rdzv_endpoint", message))
    if nodes > 1 and recipe["sampling"]["prompts"] == {"file": "-"}:
        message = "sampling.prompts.file: each node would read its own standard input; give a file"
        found.append(Problem("sampling.prompts.file", message))
    found += _device_problems(launch, ranks)
    if launch["launcher"] == "direct" and ranks > 1:
        message = f"launch.launcher=direct starts one rank, not {ranks}; use auto or torchrun"
        found.append(Problem("launch.launcher", message))
    if keep_going and (ranks > degrees.dp or degrees.sharing > 1):
        message = "--keep-going: an item that fails in one rank leaves those waiting that make it together"
        found.append(Problem("parallel", f"{message}; use dp={ranks}, a whole replica on each rank, or --fail-fast"))
    if keep_going and launch["on_oom"] == "fallback":
        message = "launch.on_oom=fallback starts anew where memory runs out, and --keep-going goes on without it"
        found.append(Problem("launch.on_oom", f"{message}; use one of them"))
    return found


def _device_problems(launch: Mapping[str, Any], ranks: int) -> list[Problem]:
    devices, nodes = launch["devices"], launch["nnodes"]
    if devices is None:
        return []
    asked, found = f"launch.devices={devices}", list[str]()
    if launch["device"] not in ("auto", "cuda"):
        found.append(f"{asked} are CUDA's, and launch.device={launch['device']}; leave one of them out")
    if len(set(devices)) < len(devices):
        found.append(f"{asked} names a device twice, and each rank has one of its own")
    if len(devices) * nodes != ranks:
        which = f"{len(devices)} device{'s' * (len(devices) > 1)} on {'this machine' if nodes == 1 else 'each node'}"
        found.append(f"{asked}: num_gpus={ranks}, and {which}; name one for each rank, or leave num_gpus auto")
    return [Problem("launch.devices", message) for message in found]

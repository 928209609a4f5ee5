"""The process group of a world: joining it, waiting for each other, and knowing an error that another rank caused."""

import datetime
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from difftool.errors import PlanError
from difftool.parallel.world import World

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
# Replicas may be busy with their items for hours; the launcher watches for progress, the group does not.
TIMEOUT = datetime.timedelta(days=1)
_LOST = re.compile(r"connection (was )?(closed|reset)|connection refused|broken pipe|socket|remote process", re.I)


@contextmanager
def joined(world: World, device: str, *, name: str = "group") -> Iterator[None]:
    """The process group, for as long as the context lasts; none for a world of one. `device` is `cpu` or `cuda`.

    The ranks find each other through a file in the folder of the world, which uses a name once: nothing listens but
    gloo's own sockets. An error leaves without a farewell, as another rank may be the one that is gone. Raises
    PlanError for other devices.
    """
    if world.folder is None:
        yield
        return
    if device not in BACKENDS:
        raise PlanError(f"{world.size} ranks on {device}: only {' and '.join(BACKENDS)} can", hint="use num_gpus=1")
    dist.init_process_group(
        BACKENDS[device],
        init_method=f"file://{world.folder}/{name}",
        rank=world.rank,
        world_size=world.size,
        timeout=TIMEOUT,
    )
    barrier(world)  # a rank that left at once would break the connections that others still make
    yield
    dist.destroy_process_group()


def leave() -> None:
    """Leaves the group that an error left behind."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier(world: World) -> None:
    """Waits until every rank is here. On the host, through gloo: no device spins meanwhile."""
    if world.size > 1:
        dist.all_reduce(torch.zeros(1))


def lost_peer(error: BaseException) -> bool:
    """Whether an error says that another rank is gone: the consequence of a failure, not its cause."""
    network = isinstance(error, dist.DistNetworkError | dist.DistBackendError | dist.DistStoreError)
    return network or (isinstance(error, RuntimeError) and bool(_LOST.search(str(error))))

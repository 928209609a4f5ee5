"""The process group of a world: joining it, waiting for each other, and knowing an error that another rank caused."""

import datetime
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from difftool.errors import PlanError
from difftool.files import write_atomic
from difftool.parallel.world import World

FileStore, TCPStore = dist.FileStore, dist.TCPStore  # type: ignore[attr-defined]
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
# Replicas may be busy with their items for hours; the launcher watches for progress, the group does not.
TIMEOUT = datetime.timedelta(days=1)
POLL_S = 0.05
_LOST = re.compile(r"connection (was )?(closed|reset)|connection refused|broken pipe|socket|remote process", re.I)


@contextmanager
def joined(world: World, device: str, *, name: str = "group") -> Iterator[None]:
    """The process group, for as long as the context lasts; none for a world of one. `device` is `cpu` or `cuda`.

    The ranks of one machine find each other through a file in the folder of the world, which uses a name once: nothing
    listens but gloo's own sockets. Those of several use a store on the first rank. An error leaves without a farewell,
    as another rank may be the one that is gone. Raises PlanError for other devices.
    """
    if world.folder is None:
        yield
        return
    if device not in BACKENDS:
        raise PlanError(f"{world.size} ranks on {device}: only {' and '.join(BACKENDS)} can", hint="use num_gpus=1")
    file = str(world.folder / name)
    store = FileStore(file, world.size) if world.address is None else network_store(world, name)
    dist.init_process_group(BACKENDS[device], store=store, rank=world.rank, world_size=world.size, timeout=TIMEOUT)
    barrier(world)  # a rank that left at once would break the connections that others still make
    yield
    dist.destroy_process_group()


def network_store(world: World, name: str) -> Any:
    """The store of several machines. The first rank listens on its address alone, at a port that the system gives it
    and that the launchers bring to every other machine, as the file `name` in the folder of the world.
    """
    assert world.folder is not None and world.address is not None
    file = world.folder / name
    if not world.first:
        return TCPStore(world.address, _told_port(file), timeout=TIMEOUT)
    family = socket.AF_INET6 if ":" in world.address else socket.AF_INET
    with socket.create_server((world.address, 0), family=family) as server:
        port, descriptor = server.getsockname()[1], server.fileno()
        store = TCPStore(
            world.address, port, is_master=True, timeout=TIMEOUT, wait_for_workers=False, master_listen_fd=descriptor
        )
        server.detach()  # the store closes it
    write_atomic(file, str(port).encode())
    return store


def _told_port(file: Path) -> int:
    while not file.exists():  # the launcher ends a rank whose world does not come together
        time.sleep(POLL_S)
    return int(file.read_text())


def gather(world: World, mine: bytes) -> list[bytes]:
    """What every rank hands in, by rank; all of them call it. Through gloo, on the host; nothing is unpickled."""
    if world.size == 1:
        return [mine]
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world.size)]
    dist.all_gather(sizes, torch.tensor([len(mine)]))
    lengths = [int(size) for size in sizes]
    padded = torch.frombuffer(bytearray(mine.ljust(max(*lengths, 1), b"\0")), dtype=torch.uint8)
    parts = [torch.empty_like(padded) for _ in range(world.size)]
    dist.all_gather(parts, padded)
    return [bytes(part.tolist())[:length] for part, length in zip(parts, lengths, strict=True)]


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

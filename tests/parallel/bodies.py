"""Functions that the ranks of the test pool run: `function(world, **arguments)`, JSON in and out."""

import os
import time
from contextlib import contextmanager

import torch
import torch.distributed as dist

from difftool.parallel.group import barrier, gather
from difftool.parallel.mesh import Mesh


def place(world):
    """[rank, size], and the process that it is."""
    assert (dist.get_rank(), dist.get_world_size()) == (world.rank, world.size)
    return [world.rank, world.size, os.getpid()]


def total(world, *, value):
    """The sum over all ranks of value + rank."""
    sum_ = torch.tensor([float(value + world.rank)])
    dist.all_reduce(sum_)
    return sum_.item()


def fail(world, *, rank):
    """One rank fails while the others wait for it."""
    if world.rank == rank:
        raise ValueError("the rope broke")
    barrier(world)


def crash(world, *, rank):
    if world.rank == rank:
        os._exit(3)
    barrier(world)


def hang(world, *, rank):
    if world.rank == rank:
        time.sleep(600)


def give_a_tensor(world):
    return torch.zeros(1)


def length(world, *, text):
    return len(text)


def gathered(world):
    """What every rank hands in: nothing from the first, more from every next one."""
    return [part.decode() for part in gather(world, b"word" * world.rank)]


def named_collectives(world, *, degrees):
    """The names under which somebody who records sees all that lines can say, in their order; and nothing after."""
    mesh, names = Mesh(degrees, world, sharing=world.size), []

    @contextmanager
    def opened(name):
        names.append(name)
        yield
        names.append(f"end of {name}")

    ring, ulysses = mesh["ring"], mesh["ulysses"]
    ones = torch.ones(2, 2)
    with mesh.recorded(opened):
        ring.pass_on([ones], [ones.shape]).wait()
        ulysses.all_to_all(ones, [1, 1], [1, 1])
        mesh.sequence.gather(ones, 0, [2] * world.size)
        mesh.replica.all_reduce(ones)
        mesh.weights.gather_into(torch.empty(2 * world.size, 2), torch.ones(2, 2), async_op=False)
    mesh["tp"].all_reduce(ones)
    mesh.replica.all_reduce(ones)
    return names

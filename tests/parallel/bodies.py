"""Functions that the ranks of the test pool run: `function(world, **arguments)`, JSON in and out."""

import os
import time

import torch
import torch.distributed as dist

from difftool.parallel.group import barrier


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

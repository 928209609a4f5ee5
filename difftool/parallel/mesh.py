"""Where a rank stands: the axes dp x cfg x ring x ulysses x tp, tp fastest, and the lines of ranks along them.

A line is also how ranks speak to each other, and counts what this rank sends. Ranks of one line call the same methods
in the same order; a compiled forward is left for what they say, and entered again. Whoever records a run may have every
collective run in a range of its name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from difftool.facts import AXES, SEQUENCE
from difftool.parallel.world import World
from difftool.traffic import Traffic, all_gather_bytes, all_reduce_bytes, parts

T = TypeVar("T")
REPLICA = ("cfg", *SEQUENCE, "tp")  # the ranks that make one item together
OpenRange = Callable[[str], AbstractContextManager[object]]


@dataclass
class Recorder:
    """What opens a range for a collective while somebody records; the lines of a mesh share it."""

    open_range: OpenRange | None = None


@dataclass(frozen=True)
class Line:
    """The ranks along one axis, or several, that this rank is one of. A line of one has no group and never speaks."""

    ranks: tuple[int, ...] = (0,)
    index: int = 0
    group: dist.ProcessGroup | None = None
    name: str = ""  # the axis, or what several are for
    traffic: Traffic = field(default_factory=Traffic)
    recorder: Recorder = field(default_factory=Recorder)

    @property
    def degree(self) -> int:
        return len(self.ranks)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every degree-th item, from this rank's own: counts differ by one at most."""
        return items[self.index :: self.degree]

    def sizes(self, length: int) -> list[int]:
        """How many of `length` each rank keeps, as even as can be, the longer parts first."""
        return parts(length, self.degree)

    def cut(self, tensor: Tensor, dim: int) -> Tensor:
        """This rank's part along `dim`."""
        sizes = self.sizes(tensor.shape[dim])
        return tensor.narrow(dim, sum(sizes[: self.index]), sizes[self.index])

    def range(self, collective: str) -> AbstractContextManager[object]:
        """A range such as `ulysses all_to_all` where somebody records."""
        open_range = self.recorder.open_range
        return nullcontext() if open_range is None else open_range(f"{self.name} {collective}")

    @torch.compiler.disable
    def gather(self, tensor: Tensor, dim: int, sizes: Sequence[int]) -> list[Tensor]:
        """The parts of all ranks along `dim`, which have these sizes there."""
        if self.degree == 1:
            return [tensor]
        # a part as long as the longest: gloo and NCCL gather equal parts alone
        most, shape = max(sizes), list(tensor.shape)
        mine = tensor.transpose(0, dim).contiguous()
        padded = torch.nn.functional.pad(mine, (0, 0) * (mine.ndim - 1) + (0, most - shape[dim]))
        found = padded.new_empty((self.degree * most, *padded.shape[1:]))
        with self.range("all_gather"):
            dist.all_gather_into_tensor(found, padded, group=self.group)
        self.traffic.add("all_gather", all_gather_bytes(self.degree, padded.nbytes))
        each = zip(found.split(most), sizes, strict=True)
        return [part[:size].transpose(0, dim) for part, size in each]

    @torch.compiler.disable
    def gather_into(self, found: Tensor, mine: Tensor, *, async_op: bool) -> dist.Work | None:
        """Equal parts of all ranks, one after the other; with `async_op` they are there once the work is done."""
        self.traffic.add("all_gather", all_gather_bytes(self.degree, mine.nbytes))
        with self.range("all_gather"):
            return dist.all_gather_into_tensor(found, mine, group=self.group, async_op=async_op)

    @torch.compiler.disable
    def all_to_all(self, tensor: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """Rows of dim 0, the i-th `send` of them to rank i -> those received, in the order of the ranks."""
        found, sent = tensor.new_empty((sum(receive), *tensor.shape[1:])), tensor.contiguous()
        with self.range("all_to_all"):
            dist.all_to_all_single(found, sent, list(receive), list(send), group=self.group)
        row = tensor[:1].nbytes if tensor.shape[0] else 0
        self.traffic.add("all_to_all", (sum(send) - send[self.index]) * row)
        return found

    @torch.compiler.disable
    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        if self.degree > 1:
            with self.range("all_reduce"):
                dist.all_reduce(tensor, group=self.group)
            self.traffic.add("all_reduce", all_reduce_bytes(self.degree, tensor.nbytes))
        return tensor

    @torch.compiler.disable
    def pass_on(self, tensors: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> "Passing":
        """Begins to send tensors to the next rank and to receive some of these shapes from the one before."""
        found = [tensor.new_empty(list(shape)) for tensor, shape in zip(tensors, shapes, strict=True)]
        after, before = self.ranks[(self.index + 1) % self.degree], self.ranks[self.index - 1]
        sends = [dist.P2POp(dist.isend, tensor.contiguous(), after, self.group) for tensor in tensors]
        receives = [dist.P2POp(dist.irecv, tensor, before, self.group) for tensor in found]
        self.traffic.add("send", sum(tensor.nbytes for tensor in tensors))
        with self.range("send"):
            works = dist.batch_isend_irecv([*sends, *receives])
        return Passing(works, found, self)


@dataclass(frozen=True)
class Passing:
    """Tensors on their way around a line."""

    works: Sequence[dist.Work]
    found: list[Tensor]
    line: Line

    def wait(self) -> list[Tensor]:
        """What came."""
        with self.line.range("wait"):
            for work in self.works:
                work.wait()
        return self.found


class Mesh:
    """The lines of this rank: one along each axis, `sequence` along ring and ulysses, `replica` along all but dp;
    `weights` are the ranks next to each other that keep one copy of the denoiser's.
    """

    def __init__(self, degrees: Mapping[str, int], world: World, *, sharing: int = 1):
        """`degrees` by axis; `sharing` ranks keep one copy of the weights. A world of more than one rank needs its
        process group, and all ranks here at once.
        """
        self.degrees = {axis: degrees.get(axis, 1) for axis in AXES}
        assert prod(self.degrees.values()) == world.size, (self.degrees, world.size)
        self.world = world
        self._recorder = Recorder()
        # every rank takes part in the making of every group, in the same order
        self.lines = {axis: self._line(axis, (axis,)) for axis in AXES}
        self.sequence = self._line("sequence", SEQUENCE)
        self.replica = self._line("replica", REPLICA)
        self.weights = self._neighbours("hsdp", sharing)

    def __getitem__(self, axis: str) -> Line:
        return self.lines[axis]

    @property
    def leads(self) -> bool:
        """Whether this rank speaks and writes for its replica."""
        return self.replica.index == 0

    @property
    def in_step(self) -> bool:
        """Whether replicas share weights, so that all of them must run equally many forwards."""
        return self.replica.degree % self.weights.degree != 0

    @property
    def _every_line(self) -> tuple[Line, ...]:
        return (self.weights, self.replica, self.sequence, *self.lines.values())

    def traffic(self) -> dict[str, Traffic]:
        """What this rank sent, by line, of those that sent anything."""
        return {line.name: line.traffic for line in self._every_line if line.traffic.calls}

    def forget_traffic(self) -> None:
        """Counts from here on."""
        for line in self._every_line:
            line.traffic.calls.clear()
            line.traffic.bytes.clear()

    @contextmanager
    def recorded(self, open_range: OpenRange) -> Iterator[None]:
        """Every collective runs in a range of its line's and its own name: `ulysses all_to_all`."""
        self._recorder.open_range = open_range
        try:
            yield
        finally:
            self._recorder.open_range = None

    def _neighbours(self, name: str, count: int) -> Line:
        """So many ranks, one after the other, in a group of their own."""
        if count == 1:
            return Line((self.world.rank,))
        lines = [tuple(range(first, first + count)) for first in range(0, self.world.size, count)]
        group, _ = dist.new_subgroups_by_enumeration([list(line) for line in lines])
        ranks, index = lines[self.world.rank // count], self.world.rank % count
        return Line(ranks, index, group, name, recorder=self._recorder)

    def _line(self, name: str, axes: Sequence[str]) -> Line:
        """The line along these axes; where one of several is in use alone, it is that one's line."""
        used = [axis for axis in axes if self.degrees[axis] > 1]
        if not used:
            return Line((self.world.rank,))
        if len(used) == 1 and used != list(axes):
            return self.lines[used[0]]
        lines = list(self._all_lines(used))
        (ranks,) = (line for line in lines if self.world.rank in line)
        group, _ = dist.new_subgroups_by_enumeration([list(line) for line in lines])
        return Line(ranks, ranks.index(self.world.rank), group, name, recorder=self._recorder)

    def _all_lines(self, axes: Sequence[str]) -> list[tuple[int, ...]]:
        """The ranks of every line along these axes."""
        along: dict[tuple[int, ...], list[int]] = {}
        for rank, place in enumerate(product(*(range(self.degrees[axis]) for axis in AXES))):
            rest = tuple(index for axis, index in zip(AXES, place, strict=True) if axis not in axes)
            along.setdefault(rest, []).append(rank)
        return [tuple(ranks) for ranks in along.values()]

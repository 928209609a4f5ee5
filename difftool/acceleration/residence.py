"""Which weights are on the device: those of the stage that runs, and of what streams the blocks that run and come next.

What is away is an empty tensor of its dtype on the device, so that whatever reads it out of turn fails.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from difftool.acceleration.waiting import Arrival, Store

ALIGNED = 256  # bytes, as the allocators of the devices align
LINE = 64  # bytes


class Place(NamedTuple):
    """Where a tensor begins in a run of bytes, and what it is."""

    start: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    bytes: int

    def of(self, run: Tensor) -> Tensor:
        """The tensor, over the bytes."""
        return run[self.start : self.start + self.bytes].view(self.dtype).as_strided(self.size, self.stride)


class Parcel:
    """Tensors that come and go together. Made of them where they lie; they are away from then on."""

    def __init__(self, tensors: Iterable[Tensor], store: Store, device: torch.device):
        self._tensors = [tensor for tensor in tensors if tensor.numel()]
        self.holds = frozenset(map(id, self._tensors))
        self._places = places(self._tensors, device)
        self.size = max((_aligned(place.start + place.bytes) for place in self._places), default=0)
        self.held = sum(place.bytes for place in self._places)  # without what aligns them
        self.comings = 0
        self._device, self.here = device, False
        self._arrival: Arrival | None = None
        room = store.room(self.size)
        for tensor, place in zip(self._tensors, self._places, strict=True):
            place.of(room).copy_(tensor)
        self._kept = store.keep(room)
        self._empty()

    def start(self) -> None:
        """Sets it on its way, unless it is."""
        if self._arrival is None:
            self._arrival = self._kept.fetch()
            self.comings += 1

    def come(self) -> None:
        """Waits until it is here."""
        if not self.here:
            self.start()
            assert self._arrival is not None
            self._fill(self._arrival())
            self.here = True

    def go(self) -> None:
        """Gives its memory back."""
        if self._arrival is not None and not self.here:
            self._arrival()  # or what is still being written would be given back
        self._arrival = None
        if self.here:
            self._empty()
            self.here = False

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Within, the tensors may be changed in place, on the host; so they are kept."""
        self.go()
        run = self._kept.read()
        self._fill(run)
        try:
            yield
        finally:
            self._kept.write(run)
            self._empty()

    def _fill(self, run: Tensor) -> None:
        for tensor, place in zip(self._tensors, self._places, strict=True):
            tensor.data = place.of(run)

    def _empty(self) -> None:
        for tensor, place in zip(self._tensors, self._places, strict=True):
            tensor.data = torch.empty(0, dtype=place.dtype, device=self._device)


class Home:
    """One module whose weights come and go as a whole, in several parcels. `alone`: no other of its stage that is so
    is here with it.
    """

    def __init__(self, module: nn.Module, parcels: Sequence[Parcel], *, alone: bool):
        self.module, self.parcels, self.alone = module, parcels, alone

    def come(self) -> None:
        for parcel in self.parcels:
            parcel.start()
        for parcel in self.parcels:
            parcel.come()

    def go(self) -> None:
        for parcel in self.parcels:
            parcel.go()


class Stream:
    """One module whose blocks come one after the other, each before it runs, with the next `ahead` on their way. One
    that is skipped came when a block ran that it follows, and goes when one runs that it does not.
    """

    alone = False

    def __init__(self, blocks: Sequence[tuple[nn.Module, Parcel]], *, ahead: int):
        self.parcels = [parcel for _, parcel in blocks]
        self._ahead = min(ahead, len(blocks) - 1)
        for i, (block, _) in enumerate(blocks):
            block.register_forward_pre_hook(partial(self._before, i))
            block.register_forward_hook(partial(self._after, i))

    def come(self) -> None:
        """The first one, which others follow as they run."""
        self.parcels[0].start()

    def go(self) -> None:
        for parcel in self.parcels:
            parcel.go()

    def _before(self, i: int, block: nn.Module, given: Any) -> None:
        following = [(i + k) % len(self.parcels) for k in range(self._ahead + 1)]
        for j, parcel in enumerate(self.parcels):
            if j not in following:
                parcel.go()
        self.parcels[i].come()
        for j in following[1:]:
            self.parcels[j].start()

    def _after(self, i: int, block: nn.Module, given: Any, made: Any) -> None:
        self.parcels[i].go()


class Residence:
    """The modules that are not always on the device, by component name."""

    def __init__(self, homes: Mapping[str, Home | Stream]):
        self._homes = homes
        self._staged: tuple[str, ...] = ()
        for name, home in homes.items():
            if isinstance(home, Home) and home.alone:
                home.module.register_forward_pre_hook(partial(self._turn, name))

    @contextmanager
    def visit(self, names: Sequence[str]) -> Iterator[None]:
        """Within, these are here as `come` says; after it nothing is."""
        try:
            self.come(names)
            yield
        finally:
            self.go()

    def come(self, names: Sequence[str]) -> None:
        """Brings what a stage that runs `names` needs: of several that are here alone, none before it is called."""
        self._staged = tuple(name for name in names if name in self._homes)
        turns = [name for name in self._staged if self._homes[name].alone]
        for name in self._staged:
            if len(turns) == 1 or name not in turns:
                self._homes[name].come()

    def go(self) -> None:
        """Sends everything away that `come` brought."""
        for name in self._staged:
            self._homes[name].go()
        self._staged = ()

    def _turn(self, name: str, module: nn.Module, given: Any) -> None:
        for other in self._staged:
            if other != name and self._homes[other].alone:
                self._homes[other].go()
        self._homes[name].come()

    def parts(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[AbstractContextManager[None], dict[str, Tensor]]]:
        """These tensors in parts that wait together, and those that do not wait, each with what they may be changed in
        place within, whether they are here or not.
        """
        left = dict(tensors)
        for parcel in (parcel for home in self._homes.values() for parcel in home.parcels):
            if part := {name: left.pop(name) for name in list(left) if id(left[name]) in parcel.holds}:
                yield parcel.opened(), part
        if left:
            yield nullcontext(), left

    def waiting_bytes(self) -> int:
        """Of all parameters that are away now."""
        return sum(parcel.held for home in self._homes.values() for parcel in home.parcels if not parcel.here)

    def moved(self) -> dict[str, dict[str, int]]:
        """How often parcels came, and how many bytes that were, by component, since the beginning."""
        return {
            name: {
                "comings": sum(parcel.comings for parcel in home.parcels),
                "bytes": sum(parcel.comings * parcel.size for parcel in home.parcels),
            }
            for name, home in self._homes.items()
        }


NOWHERE = Residence({})


def tensors_of(module: nn.Module, seen: set[int]) -> list[Tensor]:
    """Parameters and buffers that are not among `seen`, which they are after."""
    every = [*module.parameters(), *module.buffers()]
    found = [tensor for tensor in every if id(tensor) not in seen]
    seen.update(map(id, found))
    return found


def places(tensors: Sequence[Tensor], device: torch.device) -> list[Place]:
    """Where each of these begins in the run of bytes that holds them all on the device: where a new tensor of its own
    could, so that the device computes with it as if it had never been away.
    """
    found, start = [], 0
    for tensor in tensors:
        stride = torch.empty_like(tensor, device="meta").stride()  # its own, or that of a copy without gaps
        begins = start + (_within_line(tensor) if device.type == "cpu" else 0)
        found.append(Place(begins, tuple(tensor.shape), tuple(stride), tensor.dtype, tensor.nbytes))
        start = _aligned(begins + tensor.nbytes)
    return found


def _within_line(tensor: Tensor) -> int:
    """Where in a line of a CPU's cache it begins, on which the last bits of its products depend."""
    place = tensor.data_ptr() % LINE if tensor.device.type == "cpu" else 0
    return place if place % tensor.element_size() == 0 else 0


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED

"""What the ranks of a plan send while they make an item: calls and bytes of every collective, by a torch-free formula.

It follows the loop of `stages.denoising` and the collectives of `parallel` call by call, with the sizes that uneven
lengths leave to each rank; on any device what a run counts is equal to it, where the length of the text is known.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from difftool.anatomy import FP32, Anatomy, Block, Cost, Request, Streams
from difftool.facts import AXES, SEQUENCE, Configs
from difftool.planning.plan import Degrees
from difftool.traffic import Traffic, all_gather_bytes, all_reduce_bytes, parts

Lines = dict[str, Traffic]


@dataclass(frozen=True)
class Known:
    """What is known of a branch beyond the plan: the text tokens of its samples, and the steps it is active in."""

    texts: tuple[int, ...] = ()
    active: range | None = None


@dataclass(frozen=True)
class Forward:
    """One call of the denoiser in the steps `active`: `samples` of them in a batch, of these branches."""

    branches: tuple[str, ...]
    anatomy: Anatomy
    samples: int
    active: Collection[int]


@dataclass(frozen=True)
class Asked:
    """A request, as its cost depends on it. `guided`: it runs a negative branch. `known` by branch."""

    values: Mapping[str, Any]
    pictures: Sequence[tuple[int, int]] = ()
    guided: bool = False
    known: Mapping[str, Known] = field(default_factory=dict)


def forwards(cost: Cost, configs: Configs, asked: Asked, *, joined: bool) -> tuple[Forward, ...]:
    """How a request's branches reach the denoiser: each on its own, or two in one batch where `joined` allows it."""
    steps = range(asked.values["num_inference_steps"])
    active = {"positive": steps}
    if asked.guided:
        active |= {"negative": steps, **cost.further(asked.values)}
    active |= {name: known.active for name, known in asked.known.items() if known.active is not None}

    def one(branches: tuple[str, ...], when: Collection[int]) -> Forward:
        known = [asked.known.get(name, Known()).texts for name in branches]
        texts = [text for each in known for text in each]
        request = Request(asked.values, asked.pictures, texts, branches[0])
        return Forward(branches, cost.anatomy(configs, request), len(texts) or len(branches), when)

    shared: Collection[int] = ()
    together: list[Forward] = []
    if joined and cost.joint and "negative" in active:
        shared = range(min(len(active[name]) for name in ("positive", "negative")))
        together = [one(("positive", "negative"), shared)]
    alone = [
        one((name,), set(when) - set(shared) if name in ("positive", "negative") else when)
        for name, when in active.items()
    ]
    return tuple(forward for forward in (*together, *alone) if forward.active)


def joins_branches(degrees: Degrees) -> bool:
    """Whether two branches may share a forward: each has a rank of its own, and no ring passes masks on."""
    return degrees.cfg == degrees.ring == 1


def place_of(rank: int, degrees: Degrees) -> dict[str, int]:
    """A rank's index along each axis; tp runs fastest."""
    found = {}
    for axis in reversed(AXES):
        rank, found[axis] = divmod(rank, getattr(degrees, axis))
    return {axis: found[axis] for axis in AXES}


def rounds(calls: Sequence[Forward], step: int, cfg: int) -> list[list[Forward]]:
    """The forwards of one step, as many at once as there are ranks for branches."""
    active = [call for call in calls if step in call.active]
    return [active[start : start + cfg] for start in range(0, len(active), cfg)]


def step_traffic(calls: Sequence[Forward], step: int, degrees: Degrees, rank: int, element: int) -> Lines:
    """What a rank sends in one step, by line. `element` is bytes of a value in the denoiser's precision."""
    found, place = Lines(), place_of(rank, degrees)
    for dealt in rounds(calls, step, degrees.cfg):
        # a rank beyond the last branch repeats it
        own = dealt[min(place["cfg"], len(dealt) - 1)]
        for line, sent in _Ranks(degrees, rank, own, element).forward().items():
            found.setdefault(line, Traffic()).merge(sent)
        if len(dealt) > 1:
            size = own.samples * own.anatomy.prediction * (FP32 if own.anatomy.prediction_fp32 else element)
            found.setdefault("cfg", Traffic()).add("all_gather", all_gather_bytes(degrees.cfg, size))
    return found


def item_traffic(calls: Sequence[Forward], steps: int, degrees: Degrees, rank: int, element: int) -> Lines:
    """What a rank sends in all steps, by line."""
    found = Lines()
    kinds: dict[tuple[bool, ...], list[int]] = {}
    for step in range(steps):
        kinds.setdefault(tuple(step in call.active for call in calls), []).append(step)
    for alike in kinds.values():
        for line, sent in step_traffic(calls, alike[0], degrees, rank, element).items():
            found.setdefault(line, Traffic()).merge(sent, len(alike))
    return found


def tokens_of(anatomy: Anatomy, block: Block, streams: Streams, degrees: Degrees, rank: int) -> int:
    """Tokens of these streams that a rank has in a block."""
    place, count = place_of(rank, degrees), degrees.ring * degrees.ulysses
    index, total = place["ring"] * degrees.ulysses + place["ulysses"], 0
    for stream in streams:
        whole = anatomy.length((stream,))
        total += parts(whole, count)[index] if block.dealt and stream in anatomy.dealt else whole
    return total


def lines_of(degrees: Degrees) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The ranks of every line in use, by the line's name in a mesh's traffic."""
    axes: dict[str, tuple[str, ...]] = {axis: (axis,) for axis in AXES if getattr(degrees, axis) > 1}
    if all(axis in axes for axis in SEQUENCE):
        axes["sequence"] = SEQUENCE
    found: dict[str, tuple[tuple[int, ...], ...]] = {}
    for name, along in axes.items():
        ranks: dict[tuple[int, ...], list[int]] = {}
        for rank in range(degrees.num_gpus):
            place = place_of(rank, degrees)
            ranks.setdefault(tuple(place[axis] for axis in AXES if axis not in along), []).append(rank)
        found[name] = tuple(tuple(line) for line in ranks.values())
    if (count := degrees.sharing) > 1:
        found["hsdp"] = tuple(tuple(range(first, first + count)) for first in range(0, degrees.num_gpus, count))
    return found


@dataclass(frozen=True)
class _Ranks:
    """One forward, on one rank."""

    degrees: Degrees
    rank: int
    call: Forward
    element: int

    @property
    def place(self) -> Mapping[str, int]:
        return place_of(self.rank, self.degrees)

    @property
    def sequence(self) -> int:
        return self.degrees.ring * self.degrees.ulysses

    def forward(self) -> Lines:
        """By line."""
        found = Lines()
        for block in self.call.anatomy.blocks:
            for line, sent in (*self._attentions(block).items(), *self._sums(block).items()):
                found.setdefault(line, Traffic()).merge(sent, block.count)
        anatomy, sharing = self.call.anatomy, self.degrees.sharing
        for count, part in anatomy.gathers(self.element, sharing) if sharing > 1 else ():
            size = all_gather_bytes(sharing, part)
            found.setdefault("hsdp", Traffic()).add("all_gather", size, count)
        if self.sequence > 1:
            size = FP32 if anatomy.gathered_fp32 else self.element
            part = max(self._sizes(anatomy.gathered)) * self.call.samples * anatomy.width * size
            both = self.degrees.ring > 1 and self.degrees.ulysses > 1
            line = "sequence" if both else "ring" if self.degrees.ring > 1 else "ulysses"
            found.setdefault(line, Traffic()).add("all_gather", all_gather_bytes(self.sequence, part))
        return found

    def _sizes(self, streams: Streams) -> list[int]:
        """Tokens of these streams on each sequence rank."""
        each = [parts(self.call.anatomy.length((stream,)), self.sequence) for stream in streams]
        return [sum(sizes) for sizes in zip(*each, strict=True)]

    def _attentions(self, block: Block) -> Lines:
        found = Lines()
        for attention in block.attentions if self.sequence > 1 else ():
            if not attention.across:
                continue
            sizes, width = self._sizes(attention.keys), attention.width // self.degrees.tp
            if self.degrees.ulysses > 1:
                self._to_heads_and_back(found.setdefault("ulysses", Traffic()), sizes, width)
            if self.degrees.ring > 1:
                self._around(found.setdefault("ring", Traffic()), sizes, width)
        return found

    def _to_heads_and_back(self, sent: Traffic, sizes: Sequence[int], width: int) -> None:
        """Queries, keys and values to the ranks that have their heads, and what they attended to back; masks to all."""
        ulysses, index, samples = self.degrees.ulysses, self.place["ulysses"], self.call.samples
        first = self.place["ring"] * ulysses
        mine = sizes[first : first + ulysses]
        if mask := self.call.anatomy.mask_bytes:
            sent.add("all_gather", all_gather_bytes(ulysses, samples * max(sizes) * mask))
        row = samples * width // ulysses * self.element
        sent.add("all_to_all", (ulysses - 1) * mine[index] * 3 * row)
        sent.add("all_to_all", (sum(mine) - mine[index]) * row)

    def _around(self, sent: Traffic, sizes: Sequence[int], width: int) -> None:
        """Keys and values of all other ranks of the ring but the next one pass by."""
        ring, ulysses, index = self.degrees.ring, self.degrees.ulysses, self.place["ring"]
        each = [sum(sizes[start : start + ulysses]) for start in range(0, len(sizes), ulysses)]
        token = 2 * self.call.samples * width // ulysses * self.element
        for step in range(ring - 1):
            sent.add("send", each[(index - step) % ring] * token)

    def _sums(self, block: Block) -> Lines:
        """Tensor parallel sums or gathers layers' outputs, and sums the squares of a norm across heads."""
        tp, sent = self.degrees.tp, Traffic()
        if tp == 1:
            return {}
        for linear in block.linears:
            if linear.split not in ("row", "gathered"):
                continue
            row = self._tokens(block, linear.streams) * self.call.samples * self.element
            if linear.split == "row":
                sent.add("all_reduce", all_reduce_bytes(tp, row * linear.outputs), linear.count)
            else:
                sent.add("all_gather", all_gather_bytes(tp, row * parts(linear.outputs, tp)[0]), linear.count)
        for streams in block.norms:
            tokens = self._tokens(block, streams) * self.call.samples
            sent.add("all_reduce", all_reduce_bytes(tp, tokens * FP32))
        return {"tp": sent} if sent.calls else {}

    def _tokens(self, block: Block, streams: Streams) -> int:
        return tokens_of(self.call.anatomy, block, streams, self.degrees, self.rank)

"""Which stored tensor fills which parameter, by rules given as data: every one is filled once, every tensor is used."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from difftool.components.headers import Stored
from difftool.errors import WeightsError

SHOWN = 4  # names of each fault
Shape = tuple[int, ...]


@dataclass(frozen=True)
class WeightSource:
    """Where a component's weights lie, and what they are called there.

    `folder` is one of the checkpoint, or an absolute one; None is the component's own. With `repo`, a hub id, it is one
    of that repository, at `revision`; None is its root. Of the files that match `patterns`, the tensors that start with
    `prefix` are this component's; without the prefix, their names are changed by each (regular expression, replacement)
    of `rename`, in order. `packed` maps a part of a name to the parts that lie stacked along dim 0 in it ({"qkv": ("q",
    "k", "v")}): stored together and wanted apart it is split, stored apart and wanted together it is stacked.
    """

    component: str
    folder: str | None = None
    repo: str | None = None
    revision: str | None = None
    prefix: str = ""
    patterns: tuple[str, ...] = ("*.safetensors",)
    rename: tuple[tuple[str, str], ...] = ()
    packed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def renamed(self, name: str) -> str:
        """A stored name as the model's."""
        name = name.removeprefix(self.prefix)
        for pattern, replacement in self.rename:
            name = re.sub(pattern, replacement, name)
        return name


@dataclass(frozen=True)
class Piece:
    """A stored tensor, or its rows from `start` to `stop`."""

    name: str
    stored: Stored
    start: int | None = None
    stop: int | None = None

    @property
    def shape(self) -> Shape:
        if self.start is None or self.stop is None:
            return self.stored.shape
        return (self.stop - self.start, *self.stored.shape[1:])


Filled = Mapping[str, Sequence[Piece]]  # what is stacked along dim 0 to make each parameter


def account(
    found: Sequence[tuple[WeightSource, Mapping[str, Stored]]], wanted: Mapping[str, Mapping[str, Shape]]
) -> dict[str, Filled]:
    """The pieces of every parameter of every component. `found`: each source with all tensors of its files; `wanted`:
    the shape of each parameter and buffer, by component.

    Raises WeightsError with the parameters that nothing fills, the tensors that nothing takes, those that two fill,
    and those of another shape.
    """
    filled: dict[str, dict[str, dict[int, Piece]]] = {component: {} for component in wanted}
    spare, faults = dict[tuple[str, str], str](), list[str]()
    for source, tensors in found:
        for name, stored in tensors.items():
            key = (str(stored.file), name)
            if not name.startswith(source.prefix):
                spare.setdefault(key, name)
                continue
            placed = list(_placed(source, name, stored, wanted[source.component]))
            if not placed and spare.get(key) != "":
                spare[key] = source.renamed(name)
            for target, order, piece in placed:
                spare[key] = ""  # used
                if order in filled[source.component].setdefault(target, {}):
                    faults.append(f"{source.component}.{target} is filled twice, the second time by {name}")
                filled[source.component][target][order] = piece
    pieces = {
        component: {name: [parts[order] for order in sorted(parts)] for name, parts in targets.items()}
        for component, targets in filled.items()
    }
    faults += _misshapen(pieces, wanted) + _left_over(pieces, wanted, {k: v for k, v in spare.items() if v})
    if faults:
        raise WeightsError(
            f"the weights do not account for the model: {'; '.join(faults)}",
            hint="adjust prefix, rename or packed of the family's weight_sources",
        )
    return dict(pieces)


def _placed(
    source: WeightSource, name: str, stored: Stored, wanted: Mapping[str, Shape]
) -> Iterator[tuple[str, int, Piece]]:
    """The parameters that a tensor fills, or fills a part of: (name, which part, piece)."""
    own = source.renamed(name)
    if own in wanted:
        yield own, 0, Piece(name, stored)
        return
    for whole, parts in source.packed.items():
        targets = [_swap(own, whole, part) for part in parts]
        if all(target in wanted for target in targets):
            start = 0
            for target in targets:
                rows = wanted[str(target)][0]
                yield str(target), 0, Piece(name, stored, start, start + rows)
                start += rows
            return
        for order, part in enumerate(parts):
            if (target := _swap(own, part, whole)) in wanted:
                yield str(target), order, Piece(name, stored)
                return


def _swap(name: str, old: str, new: str) -> str | None:
    """The name with one part of it changed; None where it has no such part."""
    dotted = f".{name}."
    return dotted.replace(f".{old}.", f".{new}.").strip(".") if f".{old}." in dotted else None


def _misshapen(pieces: Mapping[str, Filled], wanted: Mapping[str, Mapping[str, Shape]]) -> list[str]:
    found = []
    for component, targets in pieces.items():
        for name, parts in targets.items():
            shape = wanted[component][name]
            given = _stacked([part.shape for part in parts])
            taken = max(part.stop or 0 for part in parts)
            if given != shape or any(taken > part.stored.shape[0] for part in parts if part.stop is not None):
                stored = " and ".join(f"{part.name} {list(part.stored.shape)}" for part in parts)
                found.append(f"{component}.{name} has shape {list(shape)}, and there is {stored}")
    used = [part for targets in pieces.values() for parts in targets.values() for part in parts]
    ends: dict[tuple[str, str], tuple[int, Piece]] = {}
    for part in (part for part in used if part.stop is not None):
        key = (str(part.stored.file), part.name)
        ends[key] = max(ends.get(key, (0, part)), (part.stop or 0, part), key=lambda pair: pair[0])
    found += [
        f"{part.name} has {part.stored.shape[0]} rows, and its parts take {end}"
        for end, part in ends.values()
        if end < part.stored.shape[0]
    ]
    return _shortened(found)


def _stacked(shapes: Sequence[Shape]) -> Shape | None:
    """The shape of tensors put together along dim 0; None for those that do not fit together."""
    if len(shapes) == 1:
        return shapes[0]
    if len({shape[1:] for shape in shapes}) > 1 or not all(shapes):
        return None
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _left_over(
    pieces: Mapping[str, Filled], wanted: Mapping[str, Mapping[str, Shape]], spare: Mapping[tuple[str, str], str]
) -> list[str]:
    """Both sides of what does not meet, each with the nearest name of the other."""
    missing = [(c, name) for c, names in wanted.items() for name in names if name not in pieces[c]]
    found = []
    if missing:
        shown = [f"{c}.{name}{_nearest(name, list(spare.values()))}" for c, name in missing[:SHOWN]]
        found.append(f"not filled ({len(missing)}): {_listed(shown, len(missing))}")
    if spare:
        every = [name for _, name in missing]
        shown = [
            (name if own == name else f"{name} as {own}") + _nearest(own, every)
            for (_, name), own in list(spare.items())[:SHOWN]
        ]
        found.append(f"not used ({len(spare)}): {_listed(shown, len(spare))}")
    return found


def _nearest(name: str, others: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, others, n=1)
    return f" (nearest: {close[0]})" if close else ""


def _listed(shown: Sequence[str], count: int) -> str:
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def _shortened(faults: list[str]) -> list[str]:
    return faults if len(faults) <= SHOWN else [*faults[:SHOWN], f"and {len(faults) - SHOWN} more like these"]

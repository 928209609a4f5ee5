"""Plain data that remembers where each value and key was written: the form a recipe has before it is validated."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from difftool.errors import Problem, RecipeError

MAX_DEPTH = 32
Key: TypeAlias = tuple[str, ...]
Value: TypeAlias = "object | tuple[Node, ...] | dict[str, Node]"


@dataclass(frozen=True)
class Mark:
    """A position: `wan.yaml:9:3` counted from 1, or only a source such as `--set a.b=1` (line 0)."""

    source: str = ""
    line: int = 0
    col: int = 0

    def __str__(self) -> str:
        numbers = [str(number) for number in (self.line, self.col) if number]
        return ":".join([self.source, *numbers])


@dataclass(frozen=True)
class Node:
    """A value at `mark`, under the key at `key`.

    `size` counts the values in it, those behind aliases every time; `depth` counts its levels.
    `replaces`: written as one plain value, so it replaces what it is merged over although it stands for a mapping.
    """

    value: Value
    mark: Mark
    key: Mark
    size: int = 1
    depth: int = 0
    replaces: bool = False

    @property
    def mapping(self) -> dict[str, "Node"]:
        """The entries; only for a node that `is_mapping`."""
        assert isinstance(self.value, dict), self
        return self.value

    @property
    def items(self) -> tuple["Node", ...]:
        """The elements; only for a node that `is_list`."""
        assert isinstance(self.value, tuple), self
        return self.value

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.value, dict)

    @property
    def is_list(self) -> bool:
        return isinstance(self.value, tuple)


@dataclass(frozen=True)
class Fault:
    """A problem with the mark it is sorted by."""

    mark: Mark
    key: str
    message: str

    def problem(self) -> Problem:
        return Problem(self.key, self.message, str(self.mark))


def refuse(mark: Mark, message: str, *, key: str = "", hint: str | None = None) -> RecipeError:
    """The error of one fault, to raise."""
    return RecipeError([Fault(mark, key, message).problem()], hint=hint)


def dotted(path: Key) -> str:
    """`("model", "lora", "0")` -> `model.lora.0`."""
    return ".".join(path)


def put(node: Node, key: str, child: Node) -> Node:
    """The mapping `node` with `child` under `key`."""
    return replace(node, value={**node.mapping, key: child})


def without(node: Node, key: str) -> Node:
    """The mapping `node` without `key`."""
    return replace(node, value={k: child for k, child in node.mapping.items() if k != key})


def children(node: Node) -> Iterator[tuple[str, Node]]:
    """The entries of a mapping, or the elements of a list by their index; nothing for a plain value."""
    if node.is_mapping:
        yield from node.mapping.items()
    elif node.is_list:
        yield from ((str(index), child) for index, child in enumerate(node.items))


def plain(node: Node) -> object:
    """The data alone."""
    if node.is_mapping:
        return {key: plain(child) for key, child in node.mapping.items()}
    return [plain(child) for child in node.items] if node.is_list else node.value


def from_plain(value: object, mark: Mark, depth: int = 0) -> Node:
    """Data from Python or the command line as nodes that all stand at `mark`. Raises RecipeError."""
    if depth > MAX_DEPTH:
        raise refuse(mark, f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        bad = next((key for key in value if not isinstance(key, str)), None)
        if bad is not None:
            raise refuse(mark, f"the key {bad!r} is not a text")
        return Node({key: from_plain(item, mark, depth + 1) for key, item in value.items()}, mark, mark)
    if isinstance(value, (list, tuple)):
        return Node(tuple(from_plain(item, mark, depth + 1) for item in value), mark, mark)
    return Node(value, mark, mark)

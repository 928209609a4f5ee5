"""Overrides of a recipe: what `--set`, the flags and Python lay over the file."""

from collections.abc import Iterator
from dataclasses import dataclass

from difftool.errors import Problem, RecipeError
from difftool.recipe.document import read_document
from difftool.recipe.hints import unknown_key
from difftool.recipe.keys import Shape, find, value_errors
from difftool.recipe.nodes import Key, Mark, Node, from_plain, plain
from difftool.recipe.scalars import read_scalar


@dataclass(frozen=True)
class Override:
    """`value` for the dotted `key`. `origin` is what the user typed; `parse`: a text to be read by the key's type."""

    key: str
    value: object
    origin: str
    parse: bool = False


def parse_set(text: str) -> Override:
    """`a.b=value` of one `--set`. Raises RecipeError, with the nearest key for an unknown one."""
    key, equals, value = text.partition("=")
    key, origin = key.strip(), f"--set {text}"
    if not equals:
        raise RecipeError([Problem("", "write key=value, for example sampling.seed=7", origin)])
    message = key_fault(key)
    if message is not None:
        raise RecipeError([Problem(key, message, origin)])
    return Override(key, value, origin, parse=True)


def key_fault(key: str) -> str | None:
    """What is wrong with a dotted key; None if it can be set."""
    path: Key = tuple(key.split("."))
    for length in range(1, len(path)):
        shape = find(path[:length])
        if shape is not None and shape.item is not None and shape.section is None and path[length].isdecimal():
            return f"{key}: {'.'.join(path[:length])} is a list; give it whole, as in [a, b]"
    return unknown_key(key) if find(path) is None else None


def override_node(override: Override) -> Node:
    """The override as nested mappings around its value. The key must be known."""
    path: Key = tuple(override.key.split("."))
    mark = Mark(override.origin)
    value = override.value
    if override.parse and isinstance(value, str):
        value = _read(path, value)
    node = from_plain(value, mark)
    for key in reversed(path):
        node = Node({key: node}, mark, mark)
    return node


def _read(path: Key, text: str) -> object:
    """A text by the type of its key: `1e3` stays a text for a prompt, is a number for a threshold. `null` resets."""
    if text == "null":
        return None
    shape = find(path)
    assert shape is not None, path
    candidates = list(_readings(shape, text))
    right = (value for value in candidates if not value_errors(path, value))
    return next(right, candidates[-1] if isinstance(candidates[0], str) else candidates[0])


def _readings(shape: Shape, text: str) -> Iterator[object]:
    """What a text may mean, likeliest first."""
    if text.lstrip()[:1] in ("[", "{"):
        try:
            root = read_document(text, "").root
        except RecipeError:
            root = None
        if root is not None and not isinstance(root.value, str):
            yield plain(root)
    try:
        scalar = read_scalar(text)
    except ValueError:
        scalar = text
    if shape.free:
        yield scalar
        return
    yield text
    if scalar is not None:
        yield scalar

"""Nested mappings as dotted keys, and back."""

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf, in order; an empty mapping and a list are leaves."""
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{dotted}.")
        else:
            yield dotted, value


def at(tree: Mapping[str, Any], dotted: str) -> Any:
    """The value at a dotted key. Raises KeyError."""
    value: Any = tree
    for part in dotted.split("."):
        value = value[part]
    return value


def word_of(choice: Any) -> Any:
    """The word of a setting that may be a word or a mapping with it and its options."""
    return choice["name"] if isinstance(choice, Mapping) else choice


def ancestors(dotted: str) -> Iterator[str]:
    """The key itself, then its parents, nearest first."""
    while dotted:
        yield dotted
        dotted = dotted.rpartition(".")[0]

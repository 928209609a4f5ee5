"""The schema as a tree of keys: what may stand under a dotted key, and what kind of value it takes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from difftool.recipe.fields import FilePath, FreeMapping, Section
from difftool.recipe.nodes import Key, dotted
from difftool.recipe.schema import Recipe


@dataclass(frozen=True)
class Shape:
    """What a key takes: a known `section`, a list of `item`, a mapping to `values`, a `free` mapping, or a plain value.

    `file` is set for a text that names a file.
    """

    section: type[Section] | None = None
    item: "Shape | None" = None
    values: "Shape | None" = None
    free: bool = False
    file: FilePath | None = None

    def step(self, key: str) -> "Shape | None":
        """The shape under `key`; None where no such key can stand."""
        if self.free:
            return self
        if self.section is not None and key in fields_of(self.section):
            return field_shape(self.section, key)
        if self.item is not None and key.isdecimal():
            return self.item
        return self.values


ROOT = Shape(section=Recipe)


@cache
def fields_of(section: type[Section]) -> Mapping[str, FieldInfo]:
    """The fields of a section by the names users write."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


@cache
def field_shape(section: type[Section], key: str) -> Shape:
    """The shape of one field."""
    field = fields_of(section)[key]
    return _shape(field.annotation, tuple(field.metadata))


def _shape(annotation: object, metadata: tuple[Any, ...]) -> Shape:
    found: dict[str, Any] = {}
    for kind, notes in _alternatives(annotation, metadata):
        if isinstance(kind, type) and issubclass(kind, Section):
            found["section"] = kind
        elif get_origin(kind) is tuple:
            found["item"] = _shape(get_args(kind)[0], ())
        elif get_origin(kind) is dict and any(isinstance(note, FreeMapping) for note in notes):
            found["free"] = True
        elif get_origin(kind) is dict:
            found["values"] = _shape(get_args(kind)[1], ())
        found.update([("file", note) for note in notes if isinstance(note, FilePath)])
    return Shape(**found)


def _alternatives(annotation: object, metadata: tuple[Any, ...]) -> Iterator[tuple[object, tuple[Any, ...]]]:
    if get_origin(annotation) is Annotated:
        inner, *notes = get_args(annotation)
        yield from _alternatives(inner, (*notes, *metadata))
    elif get_origin(annotation) in (Union, UnionType):
        for inner in get_args(annotation):
            yield from _alternatives(inner, metadata)
    else:
        yield annotation, metadata


def find(path: Key) -> Shape | None:
    """The shape at a path from the top of a recipe; None for an unknown key."""
    shape: Shape | None = ROOT
    for key in path:
        shape = shape.step(key) if shape is not None else None
    return shape


def known_keys(section: type[Section] = Recipe, prefix: Key = ()) -> Iterator[str]:
    """Every dotted key that can be written, sections before what they hold, without the inside of lists."""
    for key in fields_of(section):
        path = (*prefix, key)
        yield dotted(path)
        inner = field_shape(section, key)
        if inner.section is not None and inner.item is None:
            yield from known_keys(inner.section, path)


def value_errors(path: Key, value: object) -> list[ErrorDetails]:
    """What the schema has against `value` at a known path. null resets a key, so it is always right."""
    section, start = _last_section(path)
    wanted = path[start:]
    if value is None or not wanted:
        return []
    for key in reversed(wanted[1:]):
        value = {key: value}
    try:
        section.model_validate({wanted[0]: value})
    except ValidationError as error:
        details = error.errors(include_url=False)
        return [d for d in details if d["loc"][:1] == (wanted[0],) and d["type"] != "missing"]
    return []


def _last_section(path: Key) -> tuple[type[Section], int]:
    """The innermost section above the last key of a path, and how many keys lead to it."""
    shape: Shape = ROOT
    section, start = Recipe, 0
    last: tuple[type[Section], int] = (section, start)
    for index, key in enumerate(path):
        if shape.section is not None:
            last = (shape.section, index)
        step = shape.step(key)
        assert step is not None, path
        shape = step
    return last


def expand(section: type[Section], value: object) -> Mapping[str, object] | None:
    """The mapping that a plain value stands for in this section, or None."""
    from_short = getattr(section, "expand", None)
    expanded = from_short(value) if from_short is not None else value
    return expanded if isinstance(expanded, Mapping) and not isinstance(value, Mapping) else None

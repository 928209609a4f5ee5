"""The building blocks of the schema: the frozen section, the shorthand section, and the scalar types."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

T = TypeVar("T")
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
BYTES = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([KMGT]i?B|B)")


def problem(message: str) -> PydanticCustomError:
    """An error whose text is shown to the user as it is, after the dotted key."""
    return PydanticCustomError("plain", "{message}", {"message": message})


class Section(BaseModel):
    """Base of every mapping of a recipe: immutable, no unknown fields, no guessing of types, finite numbers."""

    alternatives: ClassVar[tuple[str, ...]] = ()  # keys of which one, laid over, replaces the others

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


class Shorthand(Section):
    """A section that may be written as one plain value, which is then its field `short`."""

    short: ClassVar[str]
    words: ClassVar[Mapping[object, str]] = {}  # further plain values and the word each stands for

    @classmethod
    def expand(cls, value: object) -> object:
        """`value` as a mapping when it is the short form, else `value` itself."""
        if isinstance(value, bool):
            return {cls.short: cls.words[value]} if value in cls.words else value
        return {cls.short: value} if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _accept_the_short_form(cls, value: object) -> object:
        return cls.expand(value)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        full = handler.resolve_ref_schema(handler(schema))
        plain = {k: v for k, v in full["properties"][cls.short].items() if k not in ("title", "default", "description")}
        text = {"description": full.get("description", ""), "anyOf": [plain, full]}
        if cls.words:
            text["anyOf"].append({"type": "boolean"})
        return text


class Choice(Shorthand):
    """A `name` with options. Written back as the plain name when no option is set."""

    short = "name"

    @model_serializer(mode="wrap")
    def _write_the_short_form(self, write: SerializerFunctionWrapHandler) -> object:
        mapping = write(self)
        fields = type(self).model_fields
        plain = all(
            getattr(self, key) == field.get_default(call_default_factory=True)
            for key, field in fields.items()
            if key != "name"
        )
        return mapping["name"] if plain and isinstance(mapping, Mapping) and "name" in mapping else mapping


@dataclass(frozen=True)
class Aliases:
    """Metadata of a text field: other spellings, each with the name it stands for."""

    names: tuple[tuple[str, str], ...]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._normalise, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler(schema)
        described["enum"] = [*described["enum"], *dict(self.names)]
        return described

    def _normalise(self, value: object) -> object:
        return dict(self.names).get(value, value) if isinstance(value, str) else value


@dataclass(frozen=True)
class FilePath:
    """Metadata of a text that names a file or folder. `or_name`: it may also be a hub id or `builtin:NAME`."""

    or_name: bool = False


@dataclass(frozen=True)
class FreeMapping:
    """Metadata of a mapping whose keys difftool does not know: nothing under it is checked, null is a value."""


def worded(expected: str) -> WrapValidator:
    """One sentence in place of the several errors of a union: `VALUE is not {expected}`."""

    def validate(value: object, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("worded", "is not {expected}", {"expected": expected}) from None

    return WrapValidator(validate)


def _one_or_many(value: object) -> str:
    return "many" if isinstance(value, Sequence) and not isinstance(value, str) else "one"


def plain_values(value: object) -> object:
    """Refuses what JSON cannot hold: a free mapping travels to the worker and into the dump."""
    if isinstance(value, Mapping):
        return {_text_key(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise problem(f"{value} is not a finite number")
    if value is not None and not isinstance(value, (str, bool, int, float)):
        raise problem(f"{type(value).__name__} is not plain data: text, number, true, false, null, list or mapping")
    return value


def _text_key(key: object) -> str:
    if not isinstance(key, str):
        raise problem(f"the key {key!r} is not a text")
    return key


def parse_bytes(text: str) -> int:
    """`24GiB`, `512 MiB`, `80GB` -> bytes. Raises ValueError."""
    match = BYTES.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 24GiB")
    return int(float(match[1]) * UNITS[match[2]])


def _size(value: object) -> object:
    if not isinstance(value, str) or BYTES.fullmatch(value) is None:
        raise PydanticCustomError("worded", "is not {expected}", {"expected": "a size with its unit, such as 24GiB"})
    return value


Many = Annotated[tuple[T, ...], Field(strict=False)]
OneOrMany = Annotated[
    Annotated[T, Tag("one")] | Annotated[Many[T], Field(min_length=1), Tag("many")], Discriminator(_one_or_many)
]
Text = Annotated[str, Field(min_length=1)]
Path = Annotated[str, Field(min_length=1), FilePath()]
PathOrName = Annotated[str, Field(min_length=1), FilePath(or_name=True)]
Free = Annotated[dict[str, Any], BeforeValidator(plain_values), FreeMapping()]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Whole = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[str, BeforeValidator(_size)]
AutoCount = Annotated[Count | Literal["auto"], worded("a whole number of at least 1, or auto")]
AutoWhole = Annotated[Whole | Literal["auto"], worded("a whole number of at least 0, or auto")]
AutoPositive = Annotated[Positive | Literal["auto"], worded("a number above 0, or auto")]
AutoNumbers = Annotated[
    Annotated[Literal["auto"], worded("auto, or a list of numbers"), Tag("one")]
    | Annotated[Many[float], Field(min_length=1), Tag("many")],
    Discriminator(_one_or_many),
]
AutoNotNegative = Annotated[NotNegative | Literal["auto"], worded("a number of at least 0, or auto")]

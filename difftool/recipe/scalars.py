"""Plain YAML scalars by the YAML 1.2 core schema: `1e-3` is a number, `no` and dates are texts, `012` is twelve."""

import re
from collections.abc import Callable

MAX_DIGITS = 40  # of an integer: beyond any recipe, below where Python's own conversion gets slow or refuses
NULL = re.compile(r"null|Null|NULL|~|")
TRUE = re.compile(r"true|True|TRUE")
FALSE = re.compile(r"false|False|FALSE")
DECIMAL = re.compile(r"[-+]?[0-9]+")
OCTAL = re.compile(r"0o[0-7]+")
HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)")
NAN = re.compile(r"\.nan|\.NaN|\.NAN")
READERS: tuple[tuple[str, re.Pattern[str], Callable[[str], object]], ...] = (
    ("null", NULL, lambda text: None),
    ("bool", TRUE, lambda text: True),
    ("bool", FALSE, lambda text: False),
    ("int", DECIMAL, int),
    ("int", OCTAL, lambda text: int(text[2:], 8)),
    ("int", HEXADECIMAL, lambda text: int(text[2:], 16)),
    ("float", FLOAT, float),
    ("float", INFINITE, lambda text: float(text.replace(".", ""))),
    ("float", NAN, lambda text: float("nan")),
)
TAGS = ("null", "bool", "int", "float", "str", "seq", "map")


def read_scalar(text: str, tag: str = "") -> object:
    """The value of a plain scalar; `tag` is the name of an explicit core tag. Raises ValueError."""
    if tag == "str":
        return text
    for name, pattern, read in READERS:
        if tag in ("", name) and pattern.fullmatch(text):
            if name == "int" and len(text) > MAX_DIGITS:
                raise ValueError(f"a whole number of {len(text)} digits; quote a text of digits")
            return read(text)
    if tag == "float" and DECIMAL.fullmatch(text):
        return float(text)
    if tag:
        raise ValueError(f"{text!r} is not a YAML {tag}")
    return text


def join_surrogates(text: str) -> str:
    r"""`\ud83d\ude00` as JSON escapes it -> one character. Raises ValueError for half a pair."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError("half of a surrogate pair") from None

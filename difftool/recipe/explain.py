"""The validator's complaints in plain words, each with its value and its place in the file."""

import re
from collections.abc import Iterable, Mapping

from pydantic_core import ErrorDetails

from difftool.recipe.hints import nearest
from difftool.recipe.nodes import Fault, Key, Mark, Node, dotted

WORDS = {
    "int_type": "{value} is not a whole number",
    "float_type": "{value} is not a number",
    "string_type": "{value} is not a text",
    "bool_type": "{value} is not true or false",
    "tuple_type": "{value} is not a list",
    "list_type": "{value} is not a list",
    "dict_type": "{value} is not a mapping of keys to values",
    "model_type": "{value} is not a mapping of keys to values",
    "missing": "missing",
    "finite_number": "{value} is not a finite number",
    "greater_than_equal": "{value} is too small; at least {ge}",
    "greater_than": "{value} is too small; above {gt}",
    "less_than_equal": "{value} is too large; at most {le}",
    "less_than": "{value} is too large; below {lt}",
    "too_short": "{value}; give at least one",
    "string_too_short": "an empty text",
    "extra_forbidden": "unknown field",
    "worded": "{value} is not {expected}",
    "plain": "{message}",
}
NUMBERS = ("int_type", "float_type")
LISTS = ("tuple_type", "list_type")
MISSING = {"model": "missing; every recipe names its model, for example model: builtin:shapes-image"}
LONGEST = 60  # characters of a value that are shown


def explain(details: Iterable[ErrorDetails], root: Node) -> list[Fault]:
    """One fault for each error, without repetitions."""
    # a list is also called too short when every item in it is wrong
    real = (error for error in details if not (error["type"] == "too_short" and error["input"]))
    return list(dict.fromkeys(_fault(error, root) for error in real))


def is_misspelt(fault: Fault, others: Iterable[Fault]) -> bool:
    """Whether a missing key is only a misspelt one, which has a fault of its own."""
    section, _, name = fault.key.rpartition(".")
    if not fault.message.startswith(f"{fault.key}: missing"):
        return False
    siblings = (other for other in others if other.key.rpartition(".")[0] == section)
    return any(other.message.endswith(f"did you mean {name!r}?") for other in siblings)


def _fault(error: ErrorDetails, root: Node) -> Fault:
    path, node = _locate(error["loc"], root)
    if error["type"] == "missing":
        path = (*path, str(error["loc"][-1]))
    key = dotted(path)
    words = MISSING.get(key, "missing") if error["type"] == "missing" else describe(error)
    mark = node.mark if node is not root or path else Mark(root.mark.source)
    return Fault(mark, key, f"{key}: {words}" if key else words)


def _locate(loc: Iterable[object], root: Node) -> tuple[Key, Node]:
    """Follows a location through the data; parts that are names of union members are not in the data."""
    path: Key = ()
    node = root
    for part in loc:
        if node.replaces:  # the user wrote one plain value here
            break
        if node.is_mapping and part in node.mapping:
            node = node.mapping[str(part)]
        elif node.is_list and isinstance(part, int):
            node = node.items[part]
        else:
            continue
        path = (*path, str(part))
    return path, node


def describe(error: ErrorDetails) -> str:
    """What is wrong with the value of one error, in a sentence."""
    value, context = error["input"], error.get("ctx", {})
    if error["type"] == "literal_error":
        return _not_one_of(value, re.findall(r"'([^']*)'", str(context["expected"])))
    bounds = {key: f"{bound:g}" if isinstance(bound, float) else bound for key, bound in context.items()}
    words = WORDS[error["type"]].format(value=show(value), **bounds)
    if error["type"] in NUMBERS and isinstance(value, str) and _is_number(value):
        return f"{words}; remove the quotes"
    if error["type"] in LISTS and not isinstance(value, (list, tuple)):
        return f"{words}; put it in [ ]"
    if error["type"] == "string_type" and isinstance(value, (bool, int, float)):
        return f"{words}; put it in quotes"
    return words


def _not_one_of(value: object, names: list[str]) -> str:
    words = f"{show(value)} is not {'one of ' if len(names) > 1 else ''}{', '.join(names)}"
    if len(names) == 1:
        return words
    if "none" in names and value in (False, "off", "false", "no", "disabled"):
        return f"{words}; did you mean 'none'?"
    close = nearest(value.lower(), names) if isinstance(value, str) else None
    return f"{words}; did you mean {close!r}?" if close is not None else words


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def show(value: object) -> str:
    """A value as a recipe writes it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return "a list" if value else "an empty list"
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of too many digits"
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]}...{text[-1]}"

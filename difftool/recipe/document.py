"""Reads a YAML or JSON text into nodes with positions, and refuses what could cost time or mean two things.

JSON is read as the YAML it is. Every limit is checked on the parser's events, before anything is built.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from difftool.errors import RecipeError
from difftool.recipe.nodes import MAX_DEPTH, Fault, Mark, Node, dotted, refuse
from difftool.recipe.scalars import TAGS, join_surrogates, read_scalar

MAX_BYTES = 256 * 1024
MAX_ALIASES = 50
MAX_NODES = 50_000  # with every alias counted as often as it is used
ODD_BREAKS = re.compile("[\x85\u2028\u2029]")  # lines end there in YAML 1.1 and not in 1.2
CORE = "tag:yaml.org,2002:"
QUOTE = "quote a text that holds ': ' or ' #'"
ADVICE = (  # what the parser says, whether to point where it began (else where it stopped), what we say
    (r"mapping values are not", False, f"a ':' is not expected here; check the indentation, or {QUOTE}"),
    (r"found character '\\t'", False, "a tab; indent with spaces"),
    (r"found character '(.)' that", False, r"a text cannot start with '\1'; quote it"),
    (r"escape", False, "an unknown escape in double quotes; use single quotes or / for Windows paths"),
    (r"unexpected end of stream", True, "the quote opened here is not closed"),
    (r"unexpected document separator", True, "the quote opened here is not closed"),
    (r"could not find expected ':'", True, "a line without ':'; write 'key: value', and put a long text in quotes"),
    (r"expected <block end>", False, "the indentation does not fit the lines above, or text follows a closing quote"),
    (r"expected ',' or '\]'", False, "the '[' opened on line {opened} is not closed, or a ',' is missing"),
    (r"expected ',' or '}'", False, "the '{{' opened on line {opened} is not closed, or a ',' is missing"),
    (r"expected the node content", False, "a value is missing here; quote a text that starts with ',' or ']'"),
    (r"sequence entries are not", False, "a '- ' is not expected here; begin a list on a line of its own"),
    (r"expected '<document start>'", False, "text after the end; check the indentation and the brackets"),
    (r"incompatible YAML|directive", False, "recipes have no directives (%); quote a text that starts with '%'"),
    (r"alphabetic or numeric", False, "a name must follow '&' and '*'; quote a text that starts with one of them"),
    (r"tag|'!'|'>'", False, "recipes have no tags (!); quote a text that starts with '!'"),
)


@dataclass(frozen=True)
class Document:
    """A text as nodes, with what was refused on the way. `root` is None for an empty text."""

    root: Node | None
    faults: tuple[Fault, ...]


@dataclass
class _Open:
    """A mapping or list that is being read."""

    mark: Mark
    anchor: str | None
    entries: dict[str, Node] | None  # None: a list
    items: list[Node] = field(default_factory=list)
    key: str | None = None
    key_mark: Mark = Mark()
    is_merge: bool = False
    size: int = 1
    depth: int = 1
    first: dict[str, Mark] = field(default_factory=dict)


def read_text(path: Path, source: str) -> str:
    """The file as text, at most MAX_BYTES. Raises RecipeError, at `source`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise refuse(Mark(source), "no such file") from None
    except IsADirectoryError:
        raise refuse(Mark(source), "a folder, not a recipe file") from None
    except OSError as error:
        raise refuse(Mark(source), f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise refuse(Mark(source), f"longer than {MAX_BYTES // 1024} KiB; a recipe is a page of text")
    return decode(data, source)


def decode(data: bytes, source: str) -> str:
    """UTF-8 with or without a byte-order mark -> text. Raises RecipeError with the line of the first bad byte."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        bad = f"byte 0x{data[error.start]:02x}"
        raise refuse(Mark(source, line), f"{bad} is not UTF-8; save the file as UTF-8 text") from None


def read_document(text: str, source: str) -> Document:
    """A text of YAML 1.2 or JSON as nodes. Raises RecipeError where nothing after the fault can be read."""
    odd = ODD_BREAKS.search(text)
    if odd is not None:
        raise _bad_character(text, odd.start(), source)
    if source.endswith(".json"):
        text = text.replace("\t", " ")  # JSON may be indented with tabs; inside its strings they must be escaped
    return _Reader(source).read(text)


class _Reader:
    """Builds nodes from parser events, and stops at the first event beyond a limit."""

    def __init__(self, source: str):
        self.source = source
        self.stack: list[_Open] = []
        self.anchors: dict[str, Node] = {}
        self.faults: list[Fault] = []
        self.root: Node | None = None
        self.aliases = 0
        self.nodes = 0
        self.documents = 0

    def read(self, text: str) -> Document:
        for event in self._events(text):
            self._take(event, self._mark(event.start_mark))
        return Document(self.root, tuple(self.faults))

    def _events(self, text: str) -> Iterator[yaml.Event]:
        try:
            yield from yaml.parse(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            raise self._translated(error) from None
        except yaml.reader.ReaderError as error:
            raise _bad_character(text, error.position, self.source) from None

    def _translated(self, error: yaml.MarkedYAMLError) -> RecipeError:
        stopped = self._mark(error.problem_mark)
        began = self._mark(error.context_mark) if error.context_mark is not None else stopped
        problem = error.problem or "cannot be read as YAML"
        for pattern, at_begin, advice in ADVICE:
            found = re.search(pattern, problem)
            if found:
                return refuse(began if at_begin else stopped, found.expand(advice.format(opened=began.line)))
        return refuse(stopped, problem)

    def _mark(self, at: Any) -> Mark:
        return Mark(self.source, at.line + 1, at.column + 1) if at is not None else Mark(self.source)

    def _take(self, event: yaml.Event, mark: Mark) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise refuse(mark, "a second document starts here; a recipe is one document")
        elif isinstance(event, yaml.AliasEvent):
            self._add(self._aliased(event.anchor or "", mark))
        elif isinstance(event, yaml.ScalarEvent):
            self._take_scalar(event, mark)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._open(event, mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close()

    def _take_scalar(self, event: yaml.ScalarEvent, mark: Mark) -> None:
        if self._wants_key():
            self._take_key(join_surrogates_at(event.value, mark), mark, is_plain=event.style is None)
            return
        self._count(1, mark)
        tag = self._tag(event.tag, mark)
        try:
            text = join_surrogates(event.value)
            value = read_scalar(text, tag) if event.implicit[0] or tag else text
        except ValueError as error:
            raise refuse(mark, str(error)) from None
        node = Node(value, mark, mark)
        self._remember(event.anchor, node)
        self._add(node)

    def _take_key(self, key: str, mark: Mark, *, is_plain: bool) -> None:
        top = self.stack[-1]
        top.key, top.key_mark, top.is_merge = key, mark, is_plain and key == "<<"
        path = dotted((*self._path(), key))
        if top.is_merge:
            message = f"{path}: merge keys are not supported; use extends, or write the lines out"
            self.faults.append(Fault(mark, path, message))
        elif key in top.first:
            message = f"{path}: duplicate key, first on line {top.first[key].line}"
            self.faults.append(Fault(mark, path, message))
        top.first.setdefault(key, mark)

    def _open(self, event: yaml.CollectionStartEvent, mark: Mark) -> None:
        if self._wants_key():
            raise refuse(mark, "a key must be a plain text; quote a text that starts with '{' or '['")
        if len(self.stack) >= MAX_DEPTH:
            raise refuse(mark, f"nested deeper than {MAX_DEPTH} levels")
        self._count(1, mark)
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        tag = self._tag(event.tag, mark)
        if tag and tag != ("map" if is_mapping else "seq"):
            raise refuse(mark, f"a {'mapping' if is_mapping else 'list'} is not a YAML {tag}")
        self.stack.append(_Open(mark, event.anchor, {} if is_mapping else None))

    def _close(self) -> None:
        done = self.stack.pop()
        value = done.entries if done.entries is not None else tuple(done.items)
        node = Node(value, done.mark, done.mark, size=done.size, depth=done.depth)
        self._remember(done.anchor, node)
        self._add(node)

    def _aliased(self, anchor: str, mark: Mark) -> Node:
        if self._wants_key():
            raise refuse(mark, "an alias cannot be a key; quote a text that starts with '*'")
        if any(holder.anchor == anchor for holder in self.stack):
            raise refuse(mark, f"*{anchor} stands inside its own &{anchor}: it would never end")
        if anchor not in self.anchors:
            raise refuse(mark, f"*{anchor} has no &{anchor} above it; quote a text that starts with '*'")
        self.aliases += 1
        if self.aliases > MAX_ALIASES:
            raise refuse(mark, f"more than {MAX_ALIASES} aliases")
        node = self.anchors[anchor]
        if len(self.stack) + node.depth > MAX_DEPTH:
            raise refuse(mark, f"nested deeper than {MAX_DEPTH} levels")
        self._count(node.size, mark)
        return node

    def _add(self, node: Node) -> None:
        if not self.stack:
            self.root = node
            return
        top = self.stack[-1]
        top.size += node.size
        top.depth = max(top.depth, node.depth + 1)
        if top.entries is None:
            top.items.append(node)
            return
        assert top.key is not None, node
        if top.key not in top.entries and not top.is_merge:
            top.entries[top.key] = replace(node, key=top.key_mark)
        top.key = None

    def _wants_key(self) -> bool:
        return bool(self.stack) and self.stack[-1].entries is not None and self.stack[-1].key is None

    def _path(self) -> tuple[str, ...]:
        return tuple(o.key if o.key is not None else str(len(o.items)) for o in self.stack[:-1])

    def _remember(self, anchor: str | None, node: Node) -> None:
        if anchor is not None:
            self.anchors[anchor] = node

    def _count(self, more: int, mark: Mark) -> None:
        self.nodes += more
        if self.nodes > MAX_NODES:
            raise refuse(mark, f"more than {MAX_NODES} values, counting what aliases repeat")

    def _tag(self, tag: str | None, mark: Mark) -> str:
        """The name of an explicit core tag, or nothing."""
        if tag is None:
            return ""
        name = "str" if tag == "!" else tag.removeprefix(CORE)
        if name not in TAGS:
            raise refuse(mark, f"the tag {tag.replace(CORE, '!!')} is not allowed; quote a text that starts with '!'")
        return name


def join_surrogates_at(text: str, mark: Mark) -> str:
    """`join_surrogates` for a key. Raises RecipeError."""
    try:
        return join_surrogates(text)
    except ValueError as error:
        raise refuse(mark, str(error)) from None


def _bad_character(text: str, position: int, source: str) -> RecipeError:
    before = text[:position]
    mark = Mark(source, before.count("\n") + 1, position - before.rfind("\n"))
    code = f"{ord(text[position]):04x}"
    return refuse(mark, f'the control character U+{code} is not allowed; write "\\u{code}" in double quotes')

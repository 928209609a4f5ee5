"""Text encodings that a later item or a later run asks for again: kept exactly as they were made."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol

MAX_KEPT = 16
Key = tuple[str, str]  # "prompt" or "negative_prompt", and everything its encoding depends on, as JSON


class Shelf(Protocol):
    """Where encodings outlive the run."""

    def __contains__(self, key: Key) -> bool:
        """Whether there is one, to all appearance."""

    def read(self, key: Key) -> list[Any] | None:
        """None where there is none, or none that can be read."""

    def write(self, key: Key, tensors: list[Any]) -> None:
        """Keeps one."""


class Encodings:
    """`wanted` are the keys of every encoding the run will ask for. One that nobody asks for again is not kept; of the
    others at most `limit` are, the oldest going first. All are kept on the `shelf`, where there is one.
    """

    def __init__(self, wanted: Iterable[Key], *, limit: int = MAX_KEPT, shelf: Shelf | None = None):
        self._left = Counter(wanted)
        self._limit = limit
        self._shelf = shelf
        self._kept: dict[Key, list[Any]] = {}
        self.reused: list[str] = []  # the texts of the current item that were not encoded anew

    @property
    def complete(self) -> bool:
        """Whether nothing needs to be encoded."""
        return self._shelf is not None and all(key in self._shelf for key in self._left)

    def start_item(self) -> None:
        self.reused = []

    def get(self, key: Key, encode: Callable[[], list[Any]]) -> list[Any]:
        """The encoding kept under `key`, or a new one."""
        self._left[key] -= 1
        tensors = self._kept.pop(key, None)
        if tensors is None and self._shelf is not None:
            tensors = self._shelf.read(key)
        if tensors is not None:
            self.reused.append(key[0])
        else:
            tensors = encode()
            if self._shelf is not None:
                self._shelf.write(key, tensors)
        if self._left[key] > 0:
            self._kept[key] = tensors
            while len(self._kept) > self._limit:
                del self._kept[next(iter(self._kept))]
        return list(tensors)

    def __len__(self) -> int:
        return len(self._kept)

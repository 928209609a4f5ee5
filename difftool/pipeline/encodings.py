"""Text encodings that a later item asks for again: kept exactly as they were made, and no longer than needed."""

from collections import Counter
from collections.abc import Callable, Iterable

from torch import Tensor

MAX_KEPT = 16
Key = tuple[str, str]  # "prompt" or "negative_prompt", and everything its encoding depends on, as JSON


class Encodings:
    """`wanted` are the keys of every encoding the run will ask for. One that nobody asks for again is not kept; of the
    others at most `limit` are, the oldest going first.
    """

    def __init__(self, wanted: Iterable[Key], *, limit: int = MAX_KEPT):
        self._left = Counter(wanted)
        self._limit = limit
        self._kept: dict[Key, list[Tensor]] = {}
        self.reused: list[str] = []  # the texts of the current item that were not encoded anew

    def start_item(self) -> None:
        self.reused = []

    def get(self, key: Key, encode: Callable[[], list[Tensor]]) -> list[Tensor]:
        """The encoding kept under `key`, or a new one."""
        self._left[key] -= 1
        tensors = self._kept.pop(key, None)
        if tensors is None:
            tensors = encode()
        else:
            self.reused.append(key[0])
        if self._left[key] > 0:
            self._kept[key] = tensors
            while len(self._kept) > self._limit:
                del self._kept[next(iter(self._kept))]
        return list(tensors)

    def __len__(self) -> int:
        return len(self._kept)

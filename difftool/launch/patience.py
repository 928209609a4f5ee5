"""How long a run may say nothing: as a whole, and each replica while it makes an item. While they load, one may wait
for the other's download.

Of the ranks that make an item together one speaks, and is silent when any of them hangs.
"""

import time

from difftool.launch.events import Event, Finished, ItemFailed, ItemFinished, ItemStarted, Started


class Patience:
    """Hears every event. `silent` is the rank that speaks for the replica that hangs, None for the whole run."""

    def __init__(self, seconds: float, *, start_s: float):
        """`start_s` more until a worker that has started does something: its imports may take that long."""
        self.silent: int | None = None
        self._seconds = seconds
        self._heard = time.monotonic() + start_s
        self._busy: dict[int, float] = {}  # since when nothing was heard of a rank in the middle of an item

    def hear(self, event: Event) -> None:
        self._heard = max(self._heard, time.monotonic()) if isinstance(event, Started) else time.monotonic()
        if event.rank is None:
            return
        if isinstance(event, ItemFinished | ItemFailed | Finished):
            self._busy.pop(event.rank, None)
        elif event.rank in self._busy or isinstance(event, ItemStarted):
            self._busy[event.rank] = self._heard

    def over(self) -> bool:
        """Whether it has come to an end, and `silent` says with whom."""
        now = time.monotonic()
        silent = [rank for rank, heard in self._busy.items() if now - heard > self._seconds]
        if now - self._heard <= self._seconds and silent:
            self.silent = silent[0]
        return bool(silent) or now - self._heard > self._seconds

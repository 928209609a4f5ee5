"""Ctrl-C and requests to end, noted while a worker runs instead of breaking the launcher off at any line."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SignalWatch:
    """A context in which the watched signals only add to `received`. Does nothing outside the main thread.

    A signal that the process ignores (`nohup`, a background job) stays ignored. `elsewhere` holds those that other
    processes of the same world tell of.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.elsewhere: list[int] = []
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "SignalWatch":
        if threading.current_thread() is threading.main_thread():
            for number in WATCHED:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> int | None:
        """The signal that asks to end, if there is one."""
        return next(iter([*self.received, *self.elsewhere]), None)

    def again(self) -> bool:
        """Whether a second request came: stop waiting and kill."""
        return len(self.received) > 1

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)

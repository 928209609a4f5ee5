"""Reading the worker's log: its end for a message, and all of it, as it grows, for `--verbose`."""

import codecs
import re
import sys
from pathlib import Path

_TAIL_BYTES = 64 * 1024
_NOT_TEXT = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\n\t -~\u00a0-\U0010ffff]")


def size(log: Path) -> int:
    """Bytes written so far; 0 where there is no log."""
    try:
        return log.stat().st_size
    except OSError:
        return 0


def tail(log: Path, lines: int, *, start: int = 0) -> str:
    """The last `lines` lines of `log` after byte `start`, free of control sequences; empty where it cannot be read."""
    text = _read(log, max(start, size(log) - _TAIL_BYTES)).decode("utf-8", "replace")
    plain = _NOT_TEXT.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return "\n".join(plain.splitlines()[-lines:])


class LogEcho:
    """Copies what was added to the log since the last call to stderr."""

    def __init__(self, log: Path):
        self._log = log
        self._done = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def copy(self) -> None:
        data = _read(self._log, self._done)
        self._done += len(data)
        sys.stderr.write(self._decoder.decode(data))
        sys.stderr.flush()


def _read(log: Path, start: int) -> bytes:
    try:
        with log.open("rb") as file:
            file.seek(start)
            return file.read()
    except OSError:  # someone removed the folder of the run: there is nothing to show
        return b""

"""Writing a file whole or not at all."""

import contextlib
import errno
import os
from pathlib import Path

from difftool.errors import OutputError

TEMPORARY = ".difftool-tmp"  # a half-written file is always `.<name>.<pid>.difftool-tmp`, beside its target
HINTS = {
    errno.ENOSPC: "free some space, or choose another folder with -o",
    errno.EDQUOT: "the quota is used up; choose another folder with -o",
    errno.EFBIG: "the file is over the size limit of this session or file system",
    errno.EACCES: "choose a folder you may write to with -o",
    errno.EPERM: "choose a folder you may write to with -o",
    errno.EROFS: "the file system is read-only; choose another folder with -o",
    errno.ENOTDIR: "part of the path is a file; choose another folder with -o",
}


def output_error(path: Path, error: OSError) -> OutputError:
    """The user's view of a failed write."""
    reason = error.strerror or type(error).__name__
    return OutputError(f"cannot write {path}: {reason}", hint=HINTS.get(error.errno or 0, "check the path"))


def make_folder(folder: Path) -> None:
    """Creates a folder with its parents. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error


def write_temporary(path: Path, data: bytes) -> Path:
    """Writes `data`, flushed to the disk, to the temporary name beside `path`. Raises OutputError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise output_error(path, error) from error
    return temporary


def remove_temporaries(folder: Path, *, since: Path) -> None:
    """Removes half-written files below `folder` whose writer is dead.

    Not those older than the file `since`: another run's, perhaps of another machine, where its process lives.
    """
    with contextlib.suppress(OSError):  # a folder that vanished holds none
        start = since.stat().st_mtime_ns
        for path in folder.rglob(f".*{TEMPORARY}"):
            with contextlib.suppress(OSError):  # another run has just finished it
                if path.stat().st_mtime_ns >= start and not _writer_lives(path):
                    path.unlink(missing_ok=True)


def _writer_lives(temporary: Path) -> bool:
    import psutil  # type: ignore[import-untyped]  # here: too slow for `--help`

    pid = temporary.name.removesuffix(TEMPORARY).rpartition(".")[2]
    try:
        return bool(psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE)  # nobody may have waited for it
    except (ValueError, OverflowError, psutil.NoSuchProcess):
        return False
    except psutil.AccessDenied:  # somebody else's process
        return True


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`: readers see the old file or the new one. Raises OutputError."""
    temporary = write_temporary(path, data)
    try:
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise output_error(path, error) from error


def place_new(temporary: Path, path: Path) -> bool:
    """Gives a finished file the name `path`; False, and nothing changed, where that name is taken."""
    try:
        os.link(temporary, path)  # fails, in one step, where the name is taken
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        if path.exists():  # a file system without hard links: two steps
            return False
        os.rename(temporary, path)
    return True

"""The host's side of every platform: resident memory, ending with the parent, and last words."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

MIB = 1024 * 1024
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def memory() -> dict[str, float]:
    """Resident memory of this process in MiB: now, and the highest since the last reset. Takes microseconds."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        now = psutil.Process().memory_info().rss / MIB
        return {"host_mb": now, "peak_host_mb": now}
    kib = {line[:5]: int(line.split()[1]) for line in status.splitlines() if line.startswith(("VmRSS", "VmHWM"))}
    return {"host_mb": kib["VmRSS"] / 1024, "peak_host_mb": kib["VmHWM"] / 1024}


def reset_peak_memory() -> None:
    """Starts a new peak where the kernel allows it (Linux); elsewhere the peak is the process's own."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


@contextmanager
def undisturbed() -> Iterator[None]:
    """Requests to end are not heard meanwhile: for the last words of a process that ends anyway. In the main thread."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Asks the kernel (Linux) to send this process a signal when its parent ends, whatever ended it."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it ended before the request was made
        os.kill(os.getpid(), number)


def adopt_orphans() -> None:
    """Makes this process (Linux) the parent of what its children leave behind: it can wait for them."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)

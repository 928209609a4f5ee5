"""What else went on while a sample was made: the device's clock, heat and power, and what other processes took."""

import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from difftool.platforms.base import Platform
from difftool.platforms.nvidia_smi import Stream
from difftool.report.perf import Telemetry

SHORTEST_S = 0.2  # processor times come in ticks of 10 ms


class Watch:
    """Call `start` before a sample and `read` after it; neither is inside its time."""

    def __init__(self, stream: Stream | None = None):
        self._own = _relatives()
        self._stream = stream
        self._started = 0.0
        self._others = 0.0

    def start(self) -> None:
        """The sample begins."""
        self._started, self._others = time.perf_counter(), self._seconds_of_others()

    def read(self) -> Telemetry:
        """What was seen since `start`."""
        seconds = time.perf_counter() - self._started
        others = self._seconds_of_others() - self._others
        seen = self._stream.since(self._started) if self._stream else []
        clocks = [reading.clock_mhz for reading in seen if reading.clock_mhz is not None]
        heat = [reading.temperature_c for reading in seen if reading.temperature_c is not None]
        power = [reading.power_w for reading in seen if reading.power_w is not None]
        return Telemetry(
            clock_mhz=statistics.median(clocks) if clocks else None,
            temperature_c=max(heat, default=None),
            power_w=statistics.fmean(power) if power else None,
            throttle=sorted({reason for reading in seen for reason in reading.reasons}),
            load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            other_cpus=max(0.0, others / seconds) if seconds >= SHORTEST_S else None,
        )

    def _seconds_of_others(self) -> float:
        """Processor time of the whole machine without that of this run's processes."""
        machine = psutil.cpu_times()
        busy = sum(getattr(machine, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
        return busy - sum(map(_seconds, self._own))


@contextmanager
def watching(platform: Platform) -> Iterator[Watch]:
    """A watch for the samples of this process."""
    device = platform.vendor_id()
    stream = Stream(device) if device else None
    try:
        yield Watch(stream)
    finally:
        if stream is not None:
            stream.close()


def _relatives() -> list[psutil.Process]:
    """The processes of this run: its ranks, and the launcher that waits for them."""
    me = psutil.Process()
    found = {me.pid: me}
    with contextlib.suppress(psutil.Error):
        launcher = psutil.Process(os.getppid())
        found |= {process.pid: process for process in (launcher, *launcher.children(recursive=True))}
    return list(found.values())


def _seconds(process: psutil.Process) -> float:
    """0 for one that is gone, or somebody else's."""
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0

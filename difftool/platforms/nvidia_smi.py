"""What nvidia-smi says of one device: its limits, and a stream of readings while a run goes on."""

import contextlib
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

PROGRAM = "nvidia-smi"
LIMITS = {  # its fields -> the keys of a dump's `env.device`
    "driver_version": "driver",
    "power.limit": "power_limit_w",
    "clocks.max.sm": "clock_max_mhz",
    "ecc.mode.current": "ecc",
    "mig.mode.current": "mig",
}
READINGS = "clocks.sm,temperature.gpu,power.draw,clocks_event_reasons.active"
PERIOD_MS = 200
# the bits of clocks_event_reasons.active; source: NVML API reference, nvmlClocksEventReasons
REASONS = {
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}


@dataclass(frozen=True)
class Reading:
    """One line of the stream, at `time` of perf_counter. None: that device does not say."""

    time: float
    clock_mhz: float | None
    temperature_c: float | None
    power_w: float | None
    reasons: tuple[str, ...]


def limits(device: str) -> Mapping[str, str | float]:
    """What the device is set to; empty where nvidia-smi is missing, fails, or does not answer."""
    try:
        ran = subprocess.run(
            [*_query(",".join(LIMITS)), f"--id={device}"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    cells = [cell.strip() for cell in ran.stdout.strip().split(",")]
    found = dict(zip(LIMITS.values(), cells, strict=False)) if len(cells) == len(LIMITS) else {}
    return {key: value if (number := _number(value)) is None else number for key, value in found.items()}


def parse(line: str, now: float) -> Reading | None:
    """One line of READINGS; None for one that is none, as an old driver's complaint."""
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != READINGS.count(",") + 1:
        return None
    try:
        mask = int(cells[3], 16)
    except ValueError:
        return None
    reasons = tuple(name for bit, name in REASONS.items() if mask & bit)
    return Reading(now, _number(cells[0]), _number(cells[1]), _number(cells[2]), reasons)


def _number(cell: str) -> float | None:
    """None for `[N/A]` and other words."""
    try:
        return float(cell)
    except ValueError:
        return None


def _query(fields: str) -> list[str]:
    return [PROGRAM, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]


class Stream:
    """Readings of one device every PERIOD_MS, until `close`; none where nvidia-smi is missing."""

    def __init__(self, device: str):
        self._readings: deque[Reading] = deque()
        self._process: subprocess.Popen[str] | None = None
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                [*_query(READINGS), f"--id={device}", f"--loop-ms={PERIOD_MS}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            threading.Thread(target=self._follow, args=[self._process.stdout], daemon=True).start()

    def since(self, start: float) -> list[Reading]:
        """The readings from `start`, a perf_counter time, on; older ones are forgotten."""
        while self._readings and self._readings[0].time < start:  # in place: the thread adds to it meanwhile
            self._readings.popleft()
        return list(self._readings)

    def close(self) -> None:
        """Ends the program."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def _follow(self, stdout: IO[str]) -> None:
        with stdout:
            for line in stdout:
                reading = parse(line, time.perf_counter())
                if reading is not None:
                    self._readings.append(reading)

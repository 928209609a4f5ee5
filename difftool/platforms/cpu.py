"""CPU: perf_counter is the timeline, resident host memory the memory."""

import gc
import platform as host_platform
import time
from collections.abc import Mapping

import torch

from difftool.platforms import host


class CpuPlatform:
    """Source of the default precision: fp32 is what CPU kernels are exact and fast in."""

    name = "cpu"
    memory_apart = False

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def default_precision(self, role: str) -> str:
        return "fp32"

    def supports(self, precision: str) -> bool:
        return True

    def capability(self) -> None:
        return None

    def mark(self) -> float:
        return time.perf_counter()

    def elapsed_ms(self, start: float, end: float) -> float:
        return (end - start) * 1e3

    def synchronize(self) -> None:
        """CPU work is done when the call returns."""

    def reset_peak_memory(self) -> None:
        host.reset_peak_memory()

    def limit_memory(self, size: int) -> None:
        """What torch's libraries take is in no budget, so that none can be held to."""

    def free_memory(self) -> None:
        gc.collect()

    def memory(self) -> dict[str, float]:
        return host.memory()

    def describe(self) -> Mapping[str, object]:
        return {
            "name": _model_name(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        }

    def vendor_id(self) -> str | None:
        return None


def _model_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return host_platform.processor() or host_platform.machine()

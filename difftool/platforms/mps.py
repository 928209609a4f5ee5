"""Apple GPUs: the host clock around a synchronised queue."""

import gc
import time
from collections.abc import Mapping

import torch

from difftool.platforms import host
from difftool.platforms.base import check_limit


class MpsPlatform:
    """Marks synchronise, as MPS events cannot be compared with host marks across streams."""

    name = "mps"
    memory_apart = False

    def __init__(self) -> None:
        self.device = torch.device("mps")

    def default_precision(self, role: str) -> str:
        return "bf16"

    def supports(self, precision: str) -> bool:
        return True

    def capability(self) -> None:
        return None

    def mark(self) -> float:
        torch.mps.synchronize()
        return time.perf_counter()

    def elapsed_ms(self, start: float, end: float) -> float:
        return (end - start) * 1e3

    def synchronize(self) -> None:
        torch.mps.synchronize()

    def reset_peak_memory(self) -> None:
        host.reset_peak_memory()

    def limit_memory(self, size: int) -> None:
        total = torch.mps.recommended_max_memory()
        check_limit(size, total)
        torch.mps.set_per_process_memory_fraction(size / total)

    def free_memory(self) -> None:
        gc.collect()
        torch.mps.empty_cache()

    def memory(self) -> dict[str, float]:
        return {
            "allocated_mb": torch.mps.current_allocated_memory() / host.MIB,
            "reserved_mb": torch.mps.driver_allocated_memory() / host.MIB,
            **host.memory(),
        }

    def describe(self) -> Mapping[str, object]:
        return {"name": "Apple GPU (MPS)", "memory_mb": torch.mps.recommended_max_memory() // host.MIB}

    def vendor_id(self) -> str | None:
        return None

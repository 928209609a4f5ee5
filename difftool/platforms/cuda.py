"""CUDA, and ROCm under the same torch names: device events are the timeline."""

import gc
import os
from collections.abc import Mapping

import torch

from difftool.errors import PlanError
from difftool.platforms import host, nvidia_smi
from difftool.platforms.base import check_limit, visible


class CudaPlatform:
    """Source of the default precision: bf16 is what the published checkpoints are trained and stored in."""

    name = "cuda"
    memory_apart = True

    def __init__(self) -> None:
        index, present = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if index >= present:
            raise PlanError(
                f"rank {index} of this machine has no device: torch finds {present}{visible(os.environ)}",
                hint=f"use num_gpus={present}, or --device cpu",
            )
        self.device = torch.device("cuda", index)
        torch.cuda.set_device(self.device)

    def default_precision(self, role: str) -> str:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"

    def supports(self, precision: str) -> bool:
        return precision != "bf16" or torch.cuda.is_bf16_supported(including_emulation=False)

    def capability(self) -> tuple[int, int] | None:
        return None if torch.version.hip else torch.cuda.get_device_capability(self.device)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed_ms(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def reset_peak_memory(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)
        host.reset_peak_memory()

    def limit_memory(self, size: int) -> None:
        total = torch.cuda.get_device_properties(self.device).total_memory
        check_limit(size, total)
        torch.cuda.set_per_process_memory_fraction(size / total, self.device)

    def free_memory(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def memory(self) -> dict[str, float]:
        return {
            "allocated_mb": torch.cuda.memory_allocated(self.device) / host.MIB,
            "reserved_mb": torch.cuda.memory_reserved(self.device) / host.MIB,
            "peak_allocated_mb": torch.cuda.max_memory_allocated(self.device) / host.MIB,
            "peak_reserved_mb": torch.cuda.max_memory_reserved(self.device) / host.MIB,
            **host.memory(),
        }

    def describe(self) -> Mapping[str, object]:
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "name": properties.name,
            "memory_mb": properties.total_memory // host.MIB,
            "capability": f"{properties.major}.{properties.minor}",
            "runtime": torch.version.hip or torch.version.cuda,
            **(nvidia_smi.limits(device) if (device := self.vendor_id()) else {}),
        }

    def vendor_id(self) -> str | None:
        return None if torch.version.hip else f"GPU-{torch.cuda.get_device_properties(self.device).uuid}"

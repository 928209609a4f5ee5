"""What torch can do on this machine, tried out: devices, precisions, collectives, compilation."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from difftool.platforms.base import current
from difftool.platforms.host import MIB

# what a missing library, a missing kernel and a broken build have been seen to raise
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, ImportError, OSError, AssertionError, LookupError)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Found = dict[str, Any]


def questions() -> Iterator[tuple[str, Callable[[], Found]]]:
    """Those most likely to take the process down come last."""
    yield "torch", torch_build
    yield "devices", devices
    yield "libraries", libraries
    yield "collectives", collectives
    yield "compile", compilation


def torch_build() -> Found:
    """The build, the device that `launch.device: auto` takes, and why it is no accelerator where one was expected."""
    runtime = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    has_runtime = bool(torch.version.hip or torch.version.cuda)
    return {
        "version": torch.__version__,
        "runtime": runtime if has_runtime else None,
        "driver": _driver(),
        "auto": current("auto").name,
        "no_accelerator": _no_accelerator() if has_runtime and not torch.cuda.is_available() else None,
    }


def _driver() -> str | None:
    """The version of NVIDIA's driver, where there is one: torch itself knows only what CUDA it offers."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout.partition("\n")[0].strip() or None


def _no_accelerator() -> str | None:
    try:
        torch.zeros(1, device="cuda")
    except FAILURES as error:
        return reason(error)
    return None


def devices() -> Found:
    """Every device with what it computes, and the pairs of them that cannot read each other's memory."""
    count = torch.cuda.device_count()
    found = [_cuda_device(index) for index in range(count)]
    if torch.backends.mps.is_available():
        found.append(_other_device("mps"))
    found.append(_other_device("cpu"))
    pairs = [[i, j] for i in range(count) for j in range(count) if i != j]
    return {"devices": found, "without_peer_access": [p for p in pairs if not torch.cuda.can_device_access_peer(*p)]}


def _cuda_device(index: int) -> Found:
    properties = torch.cuda.get_device_properties(index)
    with torch.cuda.device(index):
        free, total = torch.cuda.mem_get_info()
        refused = _refused_precisions(torch.device("cuda", index))
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            refused["bf16"] = "emulated, so slow"
    return {
        "name": f"cuda:{index}",
        "model": properties.name,
        "memory_mb": total // MIB,
        "free_mb": free // MIB,
        "capability": f"{properties.major}.{properties.minor}",
        "refused_precisions": refused,
    }


def _other_device(kind: str) -> Found:
    described = dict(current(kind).describe())
    return {"name": kind, "model": described.pop("name"), **described} | {
        "refused_precisions": _refused_precisions(torch.device(kind))
    }


def _refused_precisions(device: torch.device) -> dict[str, str]:
    """Precisions with why a tiny product in each fails; empty where all of them work."""
    trials = {name: partial(_product, device, dtype) for name, dtype in DTYPES.items()}
    trials["fp8"] = partial(_product_fp8, device)
    refused = {}
    for name, product in trials.items():
        try:
            right = torch.equal(product().float().cpu(), torch.full((16, 16), 16.0))
        except FAILURES as error:
            refused[name] = reason(error)
        else:
            if not right:
                refused[name] = "its products are wrong"
    return refused


def _product(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    ones = torch.ones(16, 16, dtype=dtype, device=device)
    return ones @ ones


def _product_fp8(device: torch.device) -> torch.Tensor:
    ones = torch.ones(16, 16, device=device).to(torch.float8_e4m3fn)
    scale = torch.ones((), device=device)
    return torch._scaled_mm(ones, ones.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)


def libraries() -> Found:
    """Why the libraries that every run loads cannot be imported; empty where they can."""
    try:
        from diffusers import DiffusionPipeline
        from transformers import PreTrainedModel
    except FAILURES as error:
        return {"error": reason(error)}
    assert DiffusionPipeline and PreTrainedModel
    return {}


def collectives() -> Found:
    """Backend -> why ranks cannot speak through it; null where they can."""
    return {"gloo": _collective("gloo", "cpu"), "nccl": _collective("nccl", "cuda")}


def _collective(backend: str, device: str) -> str | None:
    """A group of one rank, and one sum in it."""
    if not dist.is_available() or not dist.is_backend_available(backend):
        return "this torch is built without it"
    if device == "cuda" and not torch.cuda.is_available():
        return "there is no CUDA device"
    try:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        try:
            dist.all_reduce(torch.ones(1, device=device))
        finally:
            dist.destroy_process_group()
    except FAILURES as error:
        return reason(error)
    return None


def compilation() -> Found:
    """A small function through torch.compile, from nothing: seconds, or why it failed."""
    device = current("auto").device
    started = time.perf_counter()
    try:
        torch.compile(lambda x: (x.sin() + 1).cos())(torch.ones(64, device=device))
    except FAILURES as error:
        return {"error": reason(error)}
    return {"seconds": round(time.perf_counter() - started, 1)}


def reason(error: Exception) -> str:
    """An exception's first line, which is where libraries say what is missing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

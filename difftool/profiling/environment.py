"""What a measurement ran on: versions, host, device; and fingerprints of the hardware and the software."""

import hashlib
import json
import os
import platform as host
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from difftool.platforms.base import Platform

PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "numpy")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
STEERING = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
)


SOFTWARE_OF_A_DEVICE = ("runtime", "driver")


def describe_environment(platform: Platform) -> dict[str, Any]:
    """The `env` block of a dump. Two dumps of one `fingerprint` were made by like machines with the same versions."""
    device = {"kind": platform.name, **platform.describe()}
    versions = {
        "os": host.system(),
        "python": host.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }
    hardware = {"machine": host.machine(), "cpus": os.cpu_count(), "governor": _governor()}
    of_device = {key: value for key, value in device.items() if key not in SOFTWARE_OF_A_DEVICE}
    runtime = {key: value for key, value in device.items() if key in SOFTWARE_OF_A_DEVICE}
    return {
        **versions,
        **hardware,
        "device": device,
        "hostname": host.node(),
        "env_vars": {name: os.environ[name] for name in STEERING if name in os.environ},
        "fingerprint": {"hardware": _sha256([hardware, of_device]), "software": _sha256([versions, runtime])},
    }


def _governor() -> str | None:
    """How Linux chooses the first processor's clock; None where it does not say."""
    try:
        return GOVERNOR.read_text().strip()
    except OSError:
        return None


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def commit_hash() -> str:
    """The commit of a source checkout; `N/A` for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return "N/A"
    try:
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "N/A"

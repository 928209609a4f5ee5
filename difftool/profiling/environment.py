"""What a measurement ran on: versions, host, device; and a fingerprint of what decides speed."""

import hashlib
import json
import os
import platform as host
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import difftool
from difftool.platforms import Platform

PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "numpy")
STEERING = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
)


def describe_environment(platform: Platform) -> dict[str, Any]:
    """The `env` block of a dump."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    facts: dict[str, Any] = {
        "os": host.system(),
        "machine": host.machine(),
        "python": host.python_version(),
        "packages": packages,
        "device": {"kind": platform.name, **platform.describe()},
    }
    fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    variables = {name: os.environ[name] for name in STEERING if name in os.environ}
    return {**facts, "hostname": host.node(), "cpus": os.cpu_count(), "env_vars": variables, "fingerprint": fingerprint}


def commit_hash() -> str:
    """The commit of a source checkout; `N/A` for an installed package."""
    root = Path(difftool.__file__).parents[1]
    if not (root / ".git").exists():
        return "N/A"
    try:
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "N/A"

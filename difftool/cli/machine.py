"""What this machine is: asked of the host here, and of torch in a child process.

`Machine` is what `difftool doctor --json` prints.
"""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from difftool.attention import needed_packages
from difftool.launch.environment import FIXED, RANK_VARIABLES, THREAD_VARIABLES, UNREAD
from difftool.launch.nsys import INSTALL_NVTX, nvtx_fault

PROBE = (sys.executable, "-m", "difftool.acceleration.doctor")
PROBE_TIMEOUT_S = 300.0
MIB = 1024 * 1024
CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
STEERING = (
    *(
        "ACCELERATE_",
        "CACHE_DIT_",
        "CUBLAS_",
        "CUDA_",
        "CUDNN_",
        "DIFFUSERS_",
        "FASTVIDEO_",
        "GLOO_",
        "HF_",
        "HIP_",
        "HSA_",
        "KMP_",
    ),
    *("MKL_", "NCCL_", "NVIDIA_TF32_OVERRIDE", "NVIDIA_VISIBLE_DEVICES", "OMP_", "OPENBLAS_", "PYTORCH_", "ROCR_"),
    *("SGLANG_", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "TRITON_", "IMAGEIO_FFMPEG_EXE", "LD_PRELOAD"),
)
SECRET = re.compile(r"TOKEN$|SECRET|PASSWORD|_KEY$")


@dataclass(frozen=True)
class Extra:
    """A package that difftool runs without. `key` and `value` are the recipe's line that needs it."""

    name: str
    key: str
    value: str
    install: str


EXTRAS = (
    Extra("triton", "stages.denoising.compile", "regional", "pip install triton"),
    *(
        Extra(package.distributions[0], "stages.denoising.attention", name, package.install)
        for package, name in needed_packages().items()
    ),
    Extra("cache-dit", "cache.backend", "dbcache", "pip install cache-dit"),
)


@dataclass(frozen=True)
class Package:
    """One package. `range` is what difftool requires of a version, `gives` what an optional one is for."""

    name: str
    version: str | None
    range: str | None = None
    fault: str | None = None
    gives: str | None = None
    available: bool = True  # whether this version of difftool makes use of it
    install: str | None = None


@dataclass(frozen=True)
class Variable:
    """A variable of the shell that steers a library. `remark` is what difftool does with it."""

    name: str
    value: str
    remark: str


@dataclass(frozen=True)
class Folder:
    """A folder that a run fills, and the MiB free on its disk."""

    path: str
    free_mb: int


@dataclass(frozen=True)
class Probe:
    """What torch answered, by question, and how the asking ended early, if it did."""

    found: Mapping[str, Mapping[str, Any]]
    fault: str | None = None


@dataclass(frozen=True)
class Machine:
    """`faults` are why difftool cannot run here; empty where it can."""

    difftool: str
    python: str
    executable: str
    platform: str
    usable_cores: int
    memory_mb: int
    temporary: Folder
    hub_cache: Folder
    hub_offline: bool
    ffmpeg: Mapping[str, str]
    nsys: Mapping[str, str]
    packages: tuple[Package, ...]
    variables: tuple[Variable, ...]
    torch: Probe
    faults: tuple[str, ...]


def examine(version: str, environment: Mapping[str, str]) -> Machine:
    """Asks everything; takes as long as importing torch and compiling a small function with it."""
    from huggingface_hub import constants

    found = packages()
    torch = ask_torch(environment)
    return Machine(
        difftool=version,
        python=platform.python_version(),
        executable=sys.executable,
        platform=platform.platform(),
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_mb=memory_mb(),
        temporary=folder(tempfile.gettempdir()),
        hub_cache=folder(constants.HF_HUB_CACHE),
        hub_offline=bool(constants.HF_HUB_OFFLINE),
        ffmpeg=ffmpeg(),
        nsys=nsys(),
        packages=found,
        variables=variables(environment),
        torch=torch,
        faults=(*(f"{p.name} {p.version or ''}".rstrip() + f": {p.fault}" for p in found if p.fault), *faults(torch)),
    )


def memory_mb() -> int:
    """Host memory in MiB, or what the container may take of it."""
    import psutil  # type: ignore[import-untyped]

    total = int(psutil.virtual_memory().total)
    limit = CGROUP_MEMORY.read_text().strip() if CGROUP_MEMORY.exists() else ""
    return min(total, int(limit) if limit.isdecimal() else total) // MIB


def folder(path: str) -> Folder:
    """The folder may not be there yet: its disk is that of the nearest one that is."""
    present = next(parent for parent in (Path(path).absolute(), *Path(path).absolute().parents) if parent.exists())
    return Folder(path, shutil.disk_usage(present).free // MIB)


def packages() -> tuple[Package, ...]:
    """Those difftool requires, by its own metadata, then those that add to it, then those that some families need."""
    try:
        lines = metadata.requires("difftool") or []
    except metadata.PackageNotFoundError:  # a checkout on the import path: nothing says what it requires
        lines = []
    wanted = [re.match(r"([\w.-]+)\s*([^;]*)", line) for line in lines if "extra ==" not in line]
    required = [_required(match[1], match[2].strip()) for match in wanted if match is not None]
    return (*required, *(_optional(package) for package in EXTRAS), *_of_families())


def _required(name: str, versions: str) -> Package:
    version = _version(name)
    install = f"pip install '{name}{versions}'"
    if version is None:
        return Package(name, None, versions, fault="not installed", install=install)
    if not in_range(version, versions):
        return Package(name, version, versions, fault=f"difftool needs {versions}", install=install)
    return Package(name, version, versions)


def _optional(package: Extra) -> Package:
    from difftool.planning.availability import takes_effect

    version = _version(package.name)
    return Package(
        package.name,
        version,
        gives=f"{package.key}: {package.value}",
        available=takes_effect(package.key, package.value),
        install=None if version else package.install,
    )


def _of_families() -> Iterator[Package]:
    """What pipelines import beyond difftool's own requirements, each with the classes that do."""
    from difftool.families.index import all_families

    users: dict[tuple[str, str], list[str]] = {}
    for family in all_families():
        for name, pipeline in family.pipelines.items():
            for needed in pipeline.packages.items():
                users.setdefault(needed, []).append(name)
    for (package, install), names in users.items():
        version = _version(package)
        yield Package(package, version, gives=", ".join(names), install=None if version else install)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def in_range(version: str, versions: str) -> bool:
    """Whether `2.13.0+cpu` is in `>=2.11,<3`. Only the numbers of a release count."""
    bounds = re.findall(r"(>=|<)\s*([\d.]+)", versions)
    return all((_numbers(version) >= _numbers(bound)) == (sign == ">=") for sign, bound in bounds)


def _numbers(version: str) -> list[int]:
    release = re.match(r"[\d.]*\d", version)
    numbers = [int(part) for part in release[0].split(".")] if release else []
    while numbers and numbers[-1] == 0:  # 3 and 3.0 are the same
        numbers.pop()
    return numbers


def ffmpeg() -> dict[str, str]:
    """The ffmpeg that writes videos, tried out: its `path` and `version`, or the `error`."""
    import imageio_ffmpeg  # type: ignore[import-untyped]

    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        return {"error": "none was found; reinstall imageio-ffmpeg"}
    trial = (
        "-v",
        "error",
        "-f",
        "lavfi",
        "-i",
        "color=s=16x16",
        "-frames:v",
        "1",
        "-c:v",
        "libx264",
        "-f",
        "null",
        "-",
    )
    try:
        subprocess.run((program, *trial), capture_output=True, text=True, timeout=60, check=True)
        first = subprocess.run((program, "-version"), capture_output=True, text=True, timeout=60, check=True).stdout
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        return {"path": program, "error": lines[-1] if lines else f"it ended with {error.returncode}"}
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"path": program, "error": str(error)}
    return {"path": program, "version": first.removeprefix("ffmpeg version ").partition(" ")[0]}


def nsys() -> dict[str, str]:
    """Nsight Systems, for `difftool profile --tool nsys`: its `path` and `version`, or the `error` that stops it."""
    program = shutil.which("nsys")
    if program is None:
        return {"error": "none on PATH; install NVIDIA Nsight Systems"}
    try:
        ran = subprocess.run((program, "--version"), capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"path": program, "error": str(error)}
    version, fault = ran.stdout.strip().rpartition(" ")[2], nvtx_fault()
    return {"path": program, "version": version, **({"error": f"{fault}; {INSTALL_NVTX}"} if fault else {})}


def variables(environment: Mapping[str, str]) -> tuple[Variable, ...]:
    """Variables by which torch, diffusers and their libraries are steered behind a recipe's back, without secrets."""
    named = {*RANK_VARIABLES, *FIXED}
    found = sorted(name for name in environment if name in named or name.startswith(STEERING))
    told = [name for name in found if not SECRET.search(name) and environment[name] != FIXED.get(name)]
    return tuple(Variable(name, environment[name], remark(name)) for name in told)


def remark(name: str) -> str:
    """What becomes of a variable in a run."""
    if name in THREAD_VARIABLES:
        return "replaced by launch.threads"
    if name in FIXED:
        return f"replaced by {FIXED[name]}"
    if name in RANK_VARIABLES:
        return "not passed on: difftool starts its ranks itself"
    if name in UNREAD:
        return "the denoiser takes stages.denoising.attention instead"
    if name.startswith("SGLANG_"):
        return "difftool reads no such variable"
    return "passed on"


def ask_torch(environment: Mapping[str, str], *, timeout_s: float = PROBE_TIMEOUT_S) -> Probe:
    """Starts the process that imports torch. It downloads nothing, and may end in any way."""
    own = {name: value for name, value in environment.items() if name not in RANK_VARIABLES}
    try:
        ran = subprocess.run(
            PROBE,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**own, "HF_HUB_OFFLINE": "1"},
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        found, asked = _answers(late.stdout or b"")
        return Probe(found, f"torch gave no answer in {timeout_s:g} s" + _about(asked))
    found, asked = _answers(ran.stdout)
    if ran.returncode < 0:
        return Probe(found, f"torch ended by {signal.Signals(-ran.returncode).name}" + _about(asked))
    if ran.returncode:
        lines = ran.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {ran.returncode}"]
        return Probe(found, lines[-1] + _about(asked))
    return Probe(found)


def _answers(stdout: bytes) -> tuple[dict[str, Any], str | None]:
    """The complete answers, and the question that has none."""
    complete = stdout.split(b"\n")[:-1]  # the last one is empty, or cut short
    lines = [json.loads(line) for line in complete if line.startswith(b"{")]
    found = {line["name"]: line["found"] for line in lines if "name" in line}
    asked = [line["asks"] for line in lines if "asks" in line]
    return found, next((name for name in asked if name not in found), None)


def _about(asked: str | None) -> str:
    return f", asked about {asked}" if asked else ""


def faults(torch: Probe) -> Sequence[str]:
    """What torch's answers say against running here; a kernel that fails is not among it."""
    libraries = torch.found.get("libraries")
    if libraries is None:
        return [torch.fault or "torch was not asked"]
    return [f"diffusers and transformers cannot be imported: {libraries['error']}"] if libraries else []

"""Attention backends as data: what each needs and can do, and which of them a recipe's setting chooses.

Read by planning, `difftool doctor` and the worker alike, so it imports no torch.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

from difftool.errors import PlanError

EVERYWHERE = ("cpu", "cuda", "rocm", "mps")
SHOWN = {"cpu": "a CPU", "cuda": "CUDA", "rocm": "ROCm", "mps": "MPS"}
HALVES = ("bf16", "fp16")
SELF, CROSS, ALL = "self", "cross", "all"
OPTIONS = ("mask_strategy_file_path", "sparsity", "moba_config", "kernel")  # of a backend, beside its name


@dataclass(frozen=True)
class Package:
    """What a backend imports beyond torch: any of these distributions, of this release at least."""

    distributions: tuple[str, ...]
    install: str
    release: str = "0"

    def fault(self) -> str:
        """Why it cannot be used; "" where it can."""
        name = self.distributions[0]
        found = next((version for each in self.distributions if (version := _version(each)) is not None), None)
        if found is None:
            return f"needs {name}, which is not installed"
        return f"needs {name} {self.release} or newer, and {found} is installed" if _older(found, self.release) else ""


@dataclass(frozen=True)
class Backend:
    """One way to compute attention.

    `capabilities` are those of CUDA devices, from the first to below the second. `widths` of a head are multiples of
    the first number, up to the second. `masks`: it can leave keys out; `lse`: it tells the log-sum-exp of its scores,
    by which a ring puts parts together. `tiles`: it leaves out parts of a video, by the frames, rows and columns of its
    tokens.
    """

    platforms: tuple[str, ...] = EVERYWHERE
    package: Package | None = None
    capabilities: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (99, 0))
    dtypes: tuple[str, ...] = ("fp32", *HALVES)
    widths: tuple[int, int] = (1, 1 << 20)
    masks: bool = False
    lse: bool = False
    tiles: bool = False


# Sources: the upstream pages that the install lines name, and the checks of diffusers' `attention_dispatch`.
BACKENDS: Mapping[str, Backend] = {
    "torch_sdpa": Backend(masks=True, lse=True),
    "fa2": Backend(
        platforms=("cuda", "rocm"),
        package=Package(("flash-attn",), "pip install flash-attn --no-build-isolation", "2.6.3"),
        capabilities=((8, 0), (99, 0)),
        dtypes=HALVES,
        widths=(8, 256),
        lse=True,
    ),
    "fa3": Backend(
        platforms=("cuda",),
        package=Package(
            ("flash-attn-3",),
            "pip install 'git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper' --no-build-isolation",
        ),
        capabilities=((9, 0), (10, 0)),
        dtypes=HALVES,
        widths=(8, 256),
        lse=True,
    ),
    "fa4": Backend(
        platforms=("cuda",),
        package=Package(("flash-attn-4",), "pip install flash-attn-4"),
        capabilities=((9, 0), (12, 0)),
        dtypes=HALVES,
        widths=(8, 128),
    ),
    "cudnn": Backend(
        platforms=("cuda",), capabilities=((8, 0), (99, 0)), dtypes=HALVES, widths=(8, 128), masks=True, lse=True
    ),
    "sage_attn": Backend(
        platforms=("cuda",),
        package=Package(
            ("sageattention",),
            "pip install 'git+https://github.com/thu-ml/SageAttention' --no-build-isolation",
            "2.1.1",
        ),
        capabilities=((8, 0), (13, 0)),
        dtypes=HALVES,
        widths=(1, 128),
        lse=True,
    ),
    "sage_attn_3": Backend(
        platforms=("cuda",),
        package=Package(
            ("sageattn3",),
            "pip install 'git+https://github.com/thu-ml/SageAttention#subdirectory=sageattention3_blackwell' "
            "--no-build-isolation",
        ),
        capabilities=((10, 0), (13, 0)),
        dtypes=HALVES,
        widths=(64, 128),
    ),
    "flex": Backend(platforms=("cpu", "cuda", "rocm"), masks=True, lse=True),
    "aiter": Backend(
        platforms=("rocm",),
        package=Package(("amd-aiter", "aiter"), "pip install amd-aiter"),
        dtypes=HALVES,
        widths=(8, 256),
    ),
    "sliding_tile_attn": Backend(platforms=("cpu", "cuda", "rocm"), tiles=True),
    "video_sparse_attn": Backend(platforms=("cpu", "cuda", "rocm"), tiles=True),
    "vmoba_attn": Backend(platforms=("cpu", "cuda", "rocm"), tiles=True),
}
FLEX = "flex"  # torch's FlexAttention, which computes what leaves out parts of a video on every platform it is for
_FASTVIDEO = Backend(
    platforms=("cuda", "rocm"),
    package=Package(("fastvideo-kernel",), "pip install fastvideo-kernel --no-deps --no-build-isolation", "0.3.5"),
    capabilities=((8, 0), (99, 0)),
    dtypes=("bf16",),
    widths=(64, 128),
)
_VARLEN = Backend(platforms=("cuda",), capabilities=((8, 0), (99, 0)), dtypes=HALVES, widths=(8, 256))
# of those that leave out parts of a video: the kernel that is faster where it can be used, and what it needs
SPECIALISED: Mapping[str, tuple[str, Backend]] = {
    "sliding_tile_attn": ("fastvideo", _FASTVIDEO),
    "video_sparse_attn": ("fastvideo", _FASTVIDEO),
    "vmoba_attn": ("varlen", _VARLEN),
}
# names that stand for the first of several that can be used
FAMILIES: Mapping[str, tuple[str, ...]] = {"fa": ("fa3", "fa4", "fa2")}
AUTO: Mapping[str, tuple[str, ...]] = {"cuda": ("fa3", "fa4", "fa2"), "rocm": ("aiter",)}
ALWAYS = "torch_sdpa"  # has everything that any attention needs, on every platform
NAMES = ("auto", *FAMILIES, *BACKENDS)


@dataclass(frozen=True)
class Needs:
    """What an attention asks of a backend, whatever the machine. `head` is the width of a head, None where it is not
    known; `masked`: some of its keys are left out; `ring`: keys come in parts; `split`: no rank has all tokens and
    heads; `video`: its tokens begin with those of a video, whose frames, rows and columns are known.
    """

    head: int | None = None
    masked: bool = False
    ring: bool = False
    split: bool = False
    video: bool = False


@dataclass(frozen=True)
class Site:
    """Where attention is computed: `dtype` as a recipe names it, `capability` that of a CUDA device."""

    platform: str
    dtype: str
    capability: tuple[int, int] | None = None


@dataclass(frozen=True)
class Chosen:
    """What a recipe says of one kind of attention in one component: a name, with the options it was given."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def chosen(setting: Any, component: str, role: str) -> Chosen:
    """Of `stages.denoising.attention`: what is said of the component's role, else of the component, of the role, of
    all. A backend that leaves out parts of a video is for self-attention: said of more than a role, it leaves the
    others to `auto`.
    """
    whole = _mapping(setting)
    own = _mapping((whole.get("components") or {}).get(component))
    for said, wide in ((own.get(role), False), (own, True), (whole.get(role), False), (whole, True)):
        if (name := _mapping(said).get("name")) is not None:
            if wide and role == CROSS and name in BACKENDS and BACKENDS[name].tiles:
                return Chosen("auto")
            return Chosen(
                name, {key: _mapping(said).get(key) for key in OPTIONS if _mapping(said).get(key) is not None}
            )
    return Chosen("auto")


def named(setting: Any) -> dict[str, str]:
    """The keys below `stages.denoising.attention` that name a backend, with the name; "" is the setting itself."""
    whole = _mapping(setting)
    found = {"": whole.get("name"), **{role: _mapping(whole.get(role)).get("name") for role in (SELF, CROSS)}}
    for component, said in (whole.get("components") or {}).items():
        own = _mapping(said)
        found[f"components.{component}"] = own.get("name")
        found |= {f"components.{component}.{role}": _mapping(own.get(role)).get("name") for role in (SELF, CROSS)}
    return {key: name for key, name in found.items() if name is not None}


def faults(name: str, site: Site, needs: Needs) -> list[str]:
    """Why a backend cannot be used there; nothing where it can."""
    return [*_lacking(BACKENDS[name], site), *unable(name, needs)]


def kernel_faults(name: str, site: Site, head: int | None) -> list[str]:
    """Why the specialised kernel of a backend cannot be used there, for heads so wide; nothing where it can."""
    _, kernel = SPECIALISED[name]
    return [*_lacking(kernel, site), *_too_wide(kernel, head)]


def _lacking(backend: Backend, site: Site) -> list[str]:
    """What the machine and the precision lack."""
    found = []
    if site.platform not in backend.platforms:
        platforms = listed([SHOWN[each] for each in backend.platforms])
        found.append(f"runs on {platforms}, and this is {SHOWN[site.platform]}")
    elif site.dtype not in backend.dtypes:
        found.append(f"computes in {listed(backend.dtypes)}, and this is {site.dtype}")
    if site.platform == "cuda" and site.capability is not None:
        least, below = backend.capabilities
        if not least <= site.capability < below:
            upper = "" if below[0] == 99 else f" to below {_number(below)}"
            found.append(f"needs compute capability {_number(least)}{upper}, and this is {_number(site.capability)}")
    if backend.package is not None and (fault := backend.package.fault()):
        found.append(fault)
    return found


def _too_wide(backend: Backend, head: int | None) -> list[str]:
    multiple, most = backend.widths
    if head is None or not (head % multiple or head > most):
        return []
    of = f"in multiples of {multiple}, " if multiple > 1 else ""
    return [f"takes heads {of}up to {most} wide, and these are {head} wide"]


def unable(name: str, needs: Needs) -> list[str]:
    """Those of the faults that no other machine mends."""
    backend = BACKENDS[name]
    found = _too_wide(backend, needs.head)
    if needs.masked and not backend.masks:
        found.append("takes no masks, and this attention needs one")
    if backend.tiles and not needs.video:
        found.append("leaves out parts of a video in self-attention, and this attention is none of a video's tokens")
    if backend.tiles and needs.split:
        found.append("needs all tokens and heads on one rank, so parallel.sp=1 and tp=1")
    elif needs.ring and not backend.lse:
        found.append("does not tell the log-sum-exp by which parallel.ring puts parts together")
    return found


def explained(name: str, found: Sequence[str]) -> str:
    """A backend's faults in one sentence, with the line that installs what it misses."""
    return f"{name} {'; '.join(found)}{_install(BACKENDS[name])}"


def kernel_explained(name: str, found: Sequence[str]) -> str:
    """The same of a backend's specialised kernel."""
    kernel, needs = SPECIALISED[name]
    return f"kernel {kernel} {'; '.join(found)}{_install(needs)}"


def _install(backend: Backend) -> str:
    package = backend.package
    return f"; install: {package.install}" if package is not None and package.fault() else ""


@dataclass(frozen=True)
class Strategy:
    """The windows of sliding_tile_attn's mask file, in tiles, by step, layer and head: {"0_2_5": [3, 3, 3]}, as
    FastVideo writes them.
    """

    file: str
    sizes: Mapping[tuple[int, int, int], tuple[int, int, int]]
    steps: int

    @classmethod
    def read(cls, file: str) -> "Strategy":
        """Raises PlanError for what is no mask file."""
        try:
            said = json.loads(Path(file).read_text(encoding="utf-8"))
            sizes = {_three(key.split("_")): _window(value) for key, value in said.items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            hint = 'it is JSON such as {"0_0_0": [3, 3, 3]}: step_layer_head, and the window in tiles'
            raise PlanError(f"mask_strategy_file_path: {file} is no mask file: {error}", hint=hint) from error
        return cls(file, sizes, 1 + max((step for step, _, _ in sizes), default=-1))

    def missing(self, layers: int, heads: int) -> str:
        """Which window it lacks for a denoiser of so many layers and heads; "" where it lacks none."""
        wanted = product(range(max(self.steps, 1)), range(layers), range(heads))
        lacking = next((key for key in wanted if key not in self.sizes), None)
        if lacking is None:
            return ""
        step, layer, head = lacking
        return (
            f"mask_strategy_file_path: {self.file} has no window for step {step}, layer {layer}, head {head}; the "
            f"denoiser has {layers} layers of {heads} heads"
        )

    def too_short(self, steps: int) -> str:
        """What to say of an item with more steps than it has; "" where they suffice."""
        if steps <= self.steps:
            return ""
        return (
            f"mask_strategy_file_path: {self.file} has windows for {self.steps} steps, and this item has {steps}; set "
            f"sampling.num_inference_steps={self.steps}, or use a file for more"
        )

    def of(self, step: int, layer: int, heads: int) -> tuple[tuple[int, int, int], ...]:
        """The windows of a layer's heads at a step."""
        return tuple(self.sizes[step, layer, head] for head in range(heads))


def _three(parts: Sequence[Any]) -> tuple[int, int, int]:
    one, two, three = (int(part) for part in parts)
    return one, two, three


def _window(value: Sequence[int]) -> tuple[int, int, int]:
    sides = _three(value)
    if min(sides) < 1:
        raise ValueError(f"a window of {list(value)} tiles")
    return sides


def candidates(name: str, platform: str) -> tuple[str, ...]:
    """The backends that a name stands for, the best first."""
    return (*AUTO.get(platform, ()), ALWAYS) if name == "auto" else FAMILIES.get(name, (name,))


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(([", ".join(names[:-1])] if len(names) > 1 else []) + list(names[-1:]))


def needed_packages() -> Mapping[Package, str]:
    """What any backend or kernel imports beyond torch, each with the name of a backend that it is for."""
    specialised = [(name, needs) for name, (_, needs) in SPECIALISED.items()]
    return {needs.package: name for name, needs in (*BACKENDS.items(), *specialised) if needs.package is not None}


def installed(name: str) -> bool:
    """Whether what a backend imports is there."""
    package = BACKENDS[name].package
    return package is None or not package.fault()


def _mapping(said: Any) -> Mapping[str, Any]:
    return said if isinstance(said, Mapping) else {"name": said}


def _number(capability: tuple[int, int]) -> str:
    return ".".join(str(part) for part in capability)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _older(version: str, release: str) -> bool:
    return _release(version) < _release(release)


def _release(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3]]

"""The perf dump, `difftool.perf/v1`: what a run measured. A superset of SGLang Diffusion's dump.

Times are milliseconds, memory MiB. Top-level single values are those of the median sample; `samples` holds all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from difftool.files import write_atomic

ACCOUNTING_LIMIT_PCT = 2.0
Tier = Literal["none", "lossy", "near", "lossless", "exact"]  # each asks more than the one before


class Part(BaseModel):
    """Base of everything in a dump: unknown fields are refused when a dump is read."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class NamedDuration(Part):
    """One stage, in SGLang's form."""

    name: str
    duration_ms: float = Field(ge=0)


class StepDuration(Part):
    """One denoising step; a cached step reused earlier results."""

    step: int = Field(ge=0)
    duration_ms: float = Field(ge=0)
    kind: Literal["compute", "cached"]


class OutputRecord(Part):
    """One written file; `path` is relative to the dump. A sound has neither width nor height."""

    path: str
    sha256: str
    width: int | None = Field(ge=1)
    height: int | None = Field(ge=1)


class Telemetry(Part):
    """What the device and the host did during one sample, where they can be asked. null: not readable here.

    `throttle` are the reasons for which the clock was held down, by NVIDIA's names; `other_cpus` is how many
    processors other processes kept busy.
    """

    clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    throttle: list[str] = []
    load_average: float | None = None
    other_cpus: float | None = None


class Sample(Part):
    """One item, run once. `item` is its position in the run; `reused` the texts whose encoding an earlier item made;
    `flops` those of its denoising, as in `cost`.
    """

    item: int
    id: str
    output: int = 0
    repeat: int
    seed: int
    total_ms: float = Field(ge=0)
    save_ms: float = Field(ge=0)
    stages_ms: dict[str, float]
    denoise_steps_ms: list[StepDuration]
    memory_checkpoints: dict[str, dict[str, float]]
    peak_memory_mb: float = Field(ge=0)
    peak_host_memory_mb: float = Field(ge=0)
    outputs: list[OutputRecord]
    reused: list[Literal["prompt", "negative_prompt"]] = []
    telemetry: Telemetry | None = None
    flops: float | None = Field(default=None, ge=0)


class Summary(Part):
    """One metric over all samples. `ci95` is the interval of the median, by order statistics; few samples have none."""

    n: int
    median: float
    mad: float
    cv_pct: float
    ci95: tuple[float, float] | None = None
    min: float
    max: float


class Throughput(Part):
    """Outputs per second of forward time."""

    outputs_per_s: float


class RunInfo(Part):
    """Which run this was. `resumed_from` is the run whose finished items, `kept_items` of them, were not made again:
    the samples are those of this start alone.
    """

    id: str
    difftool: str
    world_size: int
    resumed_from: str | None = None
    kept_items: int = 0


class RecipeInfo(Part):
    """What was asked: the resolved recipe, its hash, the hash of the workload alone, and where each value came from."""

    name: str
    sha256: str
    workload_sha256: str
    resolved: dict[str, Any]
    provenance: dict[str, str]


class Measure(Part):
    """How it was measured. `load_ms` and `cold_start_ms` (process start to first sample) are in no sample.
    `compile_ms` is what of it torch.compile took, mostly in the warm-up.

    In a process that had loaded the model for an earlier plan, `load_ms` is 0 and the cold start counts from this plan.
    """

    warmup: int
    warmup_ms: list[float]
    repeats: int
    order: Literal["sequential", "ABBA"]
    clock: str
    synced: Literal["once per stage"]
    load_ms: float
    cold_start_ms: float
    compile_ms: float = Field(default=0.0, ge=0)
    accounting_error_pct: float


class Sent(Part):
    """What one rank sent by one collective: calls, and bytes that left it in the algorithm that moves least."""

    calls: int = Field(ge=0)
    bytes: int = Field(ge=0)


class RankInfo(Part):
    """One process: how many samples it made, in how much forward time, and its median sample's own figures.

    `weights_mb` are the parameters that it holds, on the device or where they wait, which may be a part of the model's.
    `comm` is what it sent while it made its samples, all of them together, by line of the mesh (an axis, or several)
    and collective.
    """

    rank: int
    device: str
    samples: int = Field(ge=0)
    busy_ms: float = Field(ge=0)
    weights_mb: float = Field(0.0, ge=0)
    comm: dict[str, dict[str, Sent]] = {}
    stages_ms: dict[str, float]
    peak_memory_mb: float
    peak_host_memory_mb: float


class Cost(Part):
    """What a run cost besides time, the mean of its samples. `comm_bytes` is what all ranks together sent for one.

    `flops` are those of the matrix products of its denoising, two for a multiplication and its addition, by the
    family's formula: of what the model computed, so without what a cache left out, and of all ranks, where each
    product counts once. What difftool computes once for all steps counts in each. null where the family tells no
    formula, or kernels left out parts of a video. `peak_flops` is what the ranks that make an item could do a second
    at most, as published for the device at the denoiser's precision; null for a device without an entry, a CPU, or a
    quantized denoiser. `mfu` is the part of it that was done: FLOPs / (time of denoising x peak).
    """

    comm_bytes: float = Field(ge=0)
    flops: float | None = Field(default=None, ge=0)
    peak_flops: float | None = Field(default=None, gt=0)
    mfu: float | None = Field(default=None, ge=0)


def cost_of(samples: Sequence[Sample], *, comm_bytes: float, peak_flops: float | None) -> Cost:
    """That of samples which sent so much, each."""
    counted = [sample.flops for sample in samples if sample.flops is not None]
    total = sum(counted) if len(counted) == len(samples) else None
    seconds = sum(sample.stages_ms.get("denoising", 0.0) for sample in samples) / 1e3
    return Cost(
        comm_bytes=comm_bytes,
        flops=None if total is None else total / len(samples),
        peak_flops=peak_flops,
        mfu=None if total is None or peak_flops is None or not seconds else total / seconds / peak_flops,
    )


class Failure(Part):
    """Why a run has `status: failed`."""

    kind: str
    message: str
    stage: str | None
    item: int | None


class Warn(Part):
    """Something a reader of the numbers should know."""

    code: str = Field(pattern="^W(-[A-Z]+)+$")
    message: str


class OutputQuality(Part):
    """One output beside its reference. `psnr` (dB) is null where the two are equal, or there is nothing to compare.

    `max_abs` is the largest difference of pixels in 0..1, `tier` the best one that the output reaches, `tripwires`
    the ones that it failed (nan, black, constant, noise, size, frames), `missing` what could not be computed. `right`:
    whether a built-in model's picture shows what its prompt says; null for any other model, and for other prompts.
    `lpips` is the distance from the reference; `clip` the cosine of output and prompt, `clip_image` that of output and
    reference. They are null unless the recipe gives their models.
    """

    item: int
    output: int = 0
    psnr: float | None = None
    ssim: float | None = None
    ms_ssim: float | None = None
    lpips: float | None = None
    clip: float | None = None
    clip_image: float | None = None
    max_abs: float | None = None
    tier: Tier = "none"
    tripwires: list[str] = []
    missing: list[str] = []
    right: bool | None = None


class Accuracy(Part):
    """How many outputs of a built-in model show what their prompts say, by the rules of its world.

    `ci95` is Wilson's interval of the share.
    """

    right: int = Field(ge=0)
    count: int = Field(ge=1)
    ci95: tuple[float, float]


class Quality(Part):
    """What the outputs are worth. `tier` was asked for; `passed` is null where that cannot be said.

    `reference` says what they were compared with, in words; null: with nothing, and the tripwires alone were asked.
    """

    tier: Tier
    reference: str | None
    per_output: list[OutputQuality]
    passed: bool | None
    reasons: list[str] = []
    accuracy: Accuracy | None = None


class TraceFile(Part):
    """What was recorded on one rank; `path` is relative to the dump."""

    rank: int
    path: str


class KernelTime(Part):
    """An operation of the host or, on an accelerator, a kernel; `ms` is its own time, of all calls."""

    name: str
    calls: int
    ms: float = Field(ge=0)
    share_pct: float


class Profile(Part):
    """What was recorded of the first item. `steps` are those of denoising, from 0.

    Of torch's profiler: every rank's trace, for Perfetto, and the first rank's times, longest first. Of Nsight Systems:
    the one `report` of all ranks, which holds the times. `snapshots` are what the CUDA allocator of every rank did. A
    run with a profile is slower for it: its times are compared with none.
    """

    tool: Literal["torch", "nsys"]
    stages: list[str]
    steps: list[int]
    traces: list[TraceFile] = []
    kernels: list[KernelTime] = []
    kinds_ms: dict[str, float] = {}
    report: str | None = None
    snapshots: list[TraceFile] = []

    def seen(self, path_from: Callable[[str], str]) -> "Profile":
        """The same, with the path of every file as `path_from` has it."""

        def moved(files: list[TraceFile]) -> list[TraceFile]:
            return [file.model_copy(update={"path": path_from(file.path)}) for file in files]

        report = None if self.report is None else path_from(self.report)
        files = {"traces": moved(self.traces), "snapshots": moved(self.snapshots), "report": report}
        return self.model_copy(update=files)


class PerfDump(Part):
    """One run. `rank_skew_pct` is how much longer the slowest rank denoised than the fastest.

    Raises ValueError for numbers that cannot be: negative, not finite, or with steps missing.
    """

    schema_: Literal["difftool.perf/v1"] = Field("difftool.perf/v1", alias="schema")
    status: Literal["ok", "failed"]
    timestamp: str
    request_id: str
    commit_hash: str
    tag: str | None
    total_duration_ms: float = Field(ge=0)
    steps: list[NamedDuration]
    denoise_steps_ms: list[StepDuration]
    memory_checkpoints: dict[str, dict[str, float]]
    meta: dict[str, Any]
    stages_ms: dict[str, float]
    run: RunInfo
    recipe: RecipeInfo
    env: dict[str, Any]
    measure: Measure
    samples: list[Sample]
    summary: dict[str, Summary]
    throughput: Throughput | None
    ranks: list[RankInfo]
    cost: Cost | None = None
    rank_skew_pct: float | None = None
    effective: dict[str, dict[str, Any]]
    quality: Quality | None = None
    profile: Profile | None = None
    warnings: list[Warn]
    error: Failure | None = None
    failed_items: list[Failure] = []  # of a run that went on without them

    @model_validator(mode="after")
    def _is_sound(self) -> "PerfDump":
        _check_finite(self.model_dump(), "dump")
        if self.status == "ok" and not self.samples:
            raise ValueError("an ok dump has at least one sample")
        for sample in self.samples:
            if [entry.step for entry in sample.denoise_steps_ms] != list(range(len(sample.denoise_steps_ms))):
                raise ValueError(f"steps of item {sample.item} are not numbered 0, 1, 2, …")
        return self


def _check_finite(value: object, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_finite(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _check_finite(inner, f"{where}[{i}]")


def accounting_error_pct(total_ms: float, stages_ms: Mapping[str, float]) -> float:
    """How far the stages' sum is from the total, in per cent of the total."""
    return 100 * abs(total_ms - sum(stages_ms.values())) / total_ms if total_ms else 0.0


def write_perf(path: Path, dump: PerfDump) -> None:
    """Writes the dump whole or not at all. Raises OutputError."""
    write_atomic(path, dump.model_dump_json(by_alias=True, indent=2).encode() + b"\n")


def read_perf(path: Path) -> PerfDump:
    """Reads and validates a dump. Raises ValueError (pydantic's) for one that breaks the schema."""
    return PerfDump.model_validate_json(path.read_bytes())


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a dump (`difftool schema perf`)."""
    schema = PerfDump.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

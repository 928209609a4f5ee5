"""The perf dump, `difftool.perf/v1`: what a run measured. A superset of SGLang Diffusion's dump.

Times are milliseconds, memory MiB. Top-level single values are those of the median sample; `samples` holds all.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from difftool.files import write_atomic

ACCOUNTING_LIMIT_PCT = 2.0


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
    """One written file; `path` is relative to the dump."""

    path: str
    sha256: str
    width: int
    height: int


class Sample(Part):
    """One item, run once. `item` is its position in the run; `reused` the texts whose encoding an earlier item made."""

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


class Summary(Part):
    """One metric over all samples."""

    n: int
    median: float
    mad: float
    cv_pct: float
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
    """How it was measured. `load_ms` and `cold_start_ms` (process start to first sample) are in no sample."""

    warmup: int
    warmup_ms: list[float]
    repeats: int
    order: Literal["sequential"]
    clock: str
    synced: Literal["once per stage"]
    load_ms: float
    cold_start_ms: float
    accounting_error_pct: float


class RankInfo(Part):
    """One process: how many samples it made, in how much forward time, and its median sample's own figures."""

    rank: int
    device: str
    samples: int = Field(ge=0)
    busy_ms: float = Field(ge=0)
    stages_ms: dict[str, float]
    peak_memory_mb: float
    peak_host_memory_mb: float


class Failure(Part):
    """Why a run has `status: failed`."""

    kind: str
    message: str
    stage: str | None
    item: int | None


class Warn(Part):
    """Something a reader of the numbers should know."""

    code: str
    message: str


class PerfDump(Part):
    """One run. Raises ValueError for numbers that cannot be: negative, not finite, or with steps missing."""

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
    effective: dict[str, dict[str, Any]]
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

"""One dump as a comparison reads it, whichever program wrote it: who, on what, and every reading by metric."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from difftool.errors import DifftoolError
from difftool.report.perf import PerfDump, Quality, Sample
from difftool.report.sglang import BareDump, stage_name
from difftool.report.summary import readings, run_readings
from difftool.report.verdict import Series

SCHEMA = "difftool.perf/v1"
SHOWN_PROBLEMS = 3
StepKind = Literal["compute", "cached", "mixed"]
MODEL_OF_A_DEVICE = ("kind", "name")
DISTURBANCES = ("W-THROTTLE", "W-NOISY-NEIGHBOUR")
LOADS_ONCE = "a run loads once, and --repeats adds none"
SAVES_ONCE = "a run saves its first repeat, and --repeats adds none"
BARE_HAS_ONE = "a bare SGLang dump holds one run"
BARE_NOTE = (
    "a bare SGLang dump: one run on the host's clock, without synchronisation unless its environment asked for it, so "
    "work may be booked on a later stage; size, seed, precision and device are not recorded"
)


class DumpError(DifftoolError):
    """A file is no perf dump that can be compared: unreadable, invalid, or of a failed run."""

    exit_code = 2


@dataclass(frozen=True)
class StepReading:
    """One denoising step: the median over the samples, in ms. `kind` is `mixed` where samples differ in it."""

    ms: float
    kind: StepKind


@dataclass(frozen=True)
class Measured:
    """Everything a comparison needs of one dump. None: not recorded. Memory in MiB, by checkpoint and reading.

    `disturbed` says what else slowed the run, where that fell on this dump alone: arms that took turns shared it.
    """

    path: str
    format: Literal["difftool", "sglang"]
    request_id: str
    timestamp: str
    commit_hash: str
    tag: str | None
    model: str | None
    prompt: str | None
    workload: str | None
    device: str | None
    device_count: int | None
    runs: int
    items: int
    outputs_per_s: float | None
    recipe: Mapping[str, Any]
    effective: Mapping[str, Any]
    environment: Mapping[str, Any]
    stages: tuple[str, ...]
    series: Mapping[str, Series]
    steps: tuple[StepReading, ...]
    memory: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]
    fingerprint: str = ""
    quality: Quality | None = None
    disturbed: str = ""


def read_measured(path: Path) -> Measured:
    """Reads a dump of ours or a bare one of SGLang Diffusion. Raises DumpError with the path and the reason."""
    content = _load(path)
    try:
        if "schema" in content:
            return _from_dump(path, PerfDump.model_validate(content))
        return _from_bare(path, BareDump.model_validate(content))
    except ValidationError as error:
        raise DumpError(f"{path} is no valid perf dump: {_problems(error)}") from None


def _load(path: Path) -> dict[str, Any]:
    """The JSON mapping in a file, of a schema we read and with finite numbers only."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if text.strip() else None
    except OSError as error:
        hint = f"name the file: {path / 'perf.json'}" if path.is_dir() else None
        raise DumpError(f"{path} cannot be read: {error.strerror}", hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise DumpError(f"{path} is not JSON: {_what_broke(error)}") from None
    if content is None:
        raise DumpError(f"{path} is empty")
    if not isinstance(content, dict):
        raise DumpError(f"{path} is no perf dump: it does not hold a mapping")
    if "schema" not in content and "total_duration_ms" not in content:
        raise DumpError(f"{path} is no perf dump: it has neither schema nor total_duration_ms")
    if content.get("schema", SCHEMA) != SCHEMA:
        raise DumpError(f"{path} is no perf dump: its schema is {str(content['schema'])[:60]!r}, not {SCHEMA}")
    if broken := _broken_value(content, ""):
        raise DumpError(f"{path} is no valid perf dump: {broken}")
    return content


def _what_broke(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return "it is not UTF-8 text" if isinstance(error, UnicodeError) else "a number in it is too long"
    if "Unterminated" in error.msg or (
        error.doc.startswith("{") and len(error.doc[error.pos :].rstrip()) < len("false")
    ):
        return f"it ends too early, in line {len(error.doc.splitlines())}"
    return f"{error.msg[:1].lower()}{error.msg[1:]} (line {error.lineno}, column {error.colno})"


def _broken_value(value: object, where: str) -> str | None:
    """`key is nan` for the first number that is none, or text that no file can hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{where} is {value}"
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        return f"{ascii(where)} holds half a character: {ascii(value)[:60]}"
    inner: list[tuple[str, object]] = []
    if isinstance(value, dict):
        inner = [(where, key) for key in value]
        inner += [(f"{where}.{key}" if where else key, entry) for key, entry in value.items()]
    elif isinstance(value, list):
        inner = [(f"{where}[{i}]", entry) for i, entry in enumerate(value)]
    return next((found for name, entry in inner if (found := _broken_value(entry, name))), None)


def _problems(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False)
    told = [
        f"{'.'.join(str(part) for part in problem['loc']) or 'it'}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in found[:SHOWN_PROBLEMS]
    ]
    more = len(found) - SHOWN_PROBLEMS
    return "; ".join(told) + (f"; and {more} more" if more > 0 else "")


def _from_dump(path: Path, dump: PerfDump) -> Measured:
    if dump.status == "failed":
        error = dump.error
        why = f" in {error.stage}" if error and error.stage else ""
        said = f": {error.kind}: {error.message}" if error else ""
        raise DumpError(f"{path} is of a run that failed{why}{said}", hint="compare finished runs only")
    if dump.profile is not None:
        raise DumpError(
            f"{path} is of a profiled run, whose times hold the profiler's own", hint="measure without a profiler"
        )
    device = dump.env.get("device")
    named = [str(device[key]) for key in MODEL_OF_A_DEVICE if key in device] if isinstance(device, Mapping) else []
    repeats = Counter((sample.item, sample.seed) for sample in dump.samples)
    return Measured(
        path=str(path),
        format="difftool",
        request_id=dump.request_id,
        timestamp=dump.timestamp,
        commit_hash=dump.commit_hash,
        tag=dump.tag,
        model=_text(dump.meta.get("model")),
        prompt=_text(dump.meta.get("prompt")),
        workload=dump.recipe.workload_sha256,
        device=" ".join(named) or None,
        device_count=dump.run.world_size,
        runs=min(repeats.values()),
        items=len(repeats),
        outputs_per_s=dump.throughput.outputs_per_s if dump.throughput else None,
        recipe=dump.recipe.resolved,
        effective=dump.effective,
        environment=_environment(dump),
        stages=tuple(dump.stages_ms),
        series=_series(dump),
        steps=_steps(dump.samples),
        memory=_memory(dump.samples),
        notes=tuple(f"{warning.code}: {warning.message}" for warning in dump.warnings),
        fingerprint=json.dumps(dump.env.get("fingerprint", ""), sort_keys=True),
        quality=dump.quality,
        disturbed=_disturbed(dump),
    )


def _disturbed(dump: PerfDump) -> str:
    if dump.measure.order == "ABBA":
        return ""
    return ", ".join(warn.code for warn in dump.warnings if warn.code in DISTURBANCES)


def _environment(dump: PerfDump) -> dict[str, Any]:
    """What may change speed and is neither recipe nor device model: versions, host, how it was measured."""
    env = {key: value for key, value in dump.env.items() if key != "fingerprint"}
    if isinstance(env.get("device"), Mapping):
        env["device"] = {key: value for key, value in env["device"].items() if key not in MODEL_OF_A_DEVICE}
    measure = {key: getattr(dump.measure, key) for key in ("warmup", "repeats", "order", "clock", "synced")}
    return {"commit_hash": dump.commit_hash, "difftool": dump.run.difftool, "env": env, "measure": measure}


def _series(dump: PerfDump) -> dict[str, Series]:
    """Every metric of the one vocabulary that the samples hold, and the load that no sample has."""
    by_run, load = run_readings(dump.samples), (dump.measure.load_ms,)
    once = {"save": SAVES_ONCE}
    found = {
        name: Series(tuple(values), tuple(by_run[name]), once.get(name, ""))
        for name, values in readings(dump.samples).items()
    }
    return {**found, "load": Series(load, load, LOADS_ONCE)}


def _steps(samples: Sequence[Sample]) -> tuple[StepReading, ...]:
    """Each step over the samples that have as many."""
    count = max(len(sample.denoise_steps_ms) for sample in samples)
    columns = zip(*(s.denoise_steps_ms for s in samples if len(s.denoise_steps_ms) == count), strict=True)
    found: list[StepReading] = []
    for column in columns:
        first = column[0].kind
        kind: StepKind = first if all(step.kind == first for step in column) else "mixed"
        found.append(StepReading(statistics.median(step.duration_ms for step in column), kind))
    return tuple(found)


def _memory(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """The median of every reading at every checkpoint."""
    readings: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        for checkpoint, values in sample.memory_checkpoints.items():
            for name, value in values.items():
                readings.setdefault(checkpoint, {}).setdefault(name, []).append(value)
    return {point: {name: statistics.median(v) for name, v in by.items()} for point, by in readings.items()}


def _from_bare(path: Path, dump: BareDump) -> Measured:
    """SGLang's `peak_host_anon_mb` is not what we call peak_host_memory (resident), and stays out of it."""
    stages: dict[str, float] = {}
    for stage in dump.steps:
        name = stage_name(stage.name)
        stages[name] = stages.get(name, 0.0) + stage.duration_ms
    peaks = [point["peak_allocated_mb"] for point in dump.memory_checkpoints.values() if "peak_allocated_mb" in point]
    values: dict[str, tuple[float, ...]] = {name: (ms,) for name, ms in stages.items()}
    values["total"] = (dump.total_duration_ms,)
    values["step"] = tuple(step.duration_ms for step in dump.denoise_steps_ms)
    values["peak_memory"] = (max(peaks),) if peaks else ()
    return Measured(
        path=str(path),
        format="sglang",
        request_id=dump.request_id,
        timestamp=dump.timestamp,
        commit_hash=dump.commit_hash,
        tag=dump.tag,
        model=_text(dump.meta.get("model")),
        prompt=_text(dump.meta.get("prompt")),
        workload=None,
        device=None,
        device_count=None,
        runs=1,
        items=1,
        outputs_per_s=None,
        recipe={},
        effective={},
        environment={"commit_hash": dump.commit_hash},
        stages=tuple(stages),
        series={
            name: Series(found, (statistics.median(found),), BARE_HAS_ONE) for name, found in values.items() if found
        },
        steps=tuple(StepReading(step.duration_ms, "compute") for step in dump.denoise_steps_ms),
        memory=dump.memory_checkpoints,
        notes=(BARE_NOTE,),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)

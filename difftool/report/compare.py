"""`difftool.compare/v1`: perf dumps against the first of them, metric by metric, as data.

Times are milliseconds, memory MiB, ratios new / base.
"""

from collections.abc import Collection, Sequence
from typing import Any, Literal

from pydantic import Field

from difftool.report.comparable import Change, Check, list_environment, list_treatment, make_checks
from difftool.report.measured import Measured, StepReading
from difftool.report.perf import Part, Summary
from difftool.report.summary import summarise
from difftool.report.verdict import Reason, Series, Verdict, judge, worst

MEMORY = ("peak_memory", "peak_host_memory")
AFTER_STAGES = ("step", "save", "load", *MEMORY)


class Side(Part):
    """One dump: where it came from and what it measured. null: not recorded."""

    path: str
    format: Literal["difftool", "sglang"]
    request_id: str
    timestamp: str
    commit_hash: str
    tag: str | None
    model: str | None
    device: str | None
    device_count: int | None
    items: int
    runs: int
    outputs_per_s: float | None
    notes: list[str]


class Metric(Part):
    """One metric of both dumps. `ratio` is null where a side is missing or the base is 0."""

    name: str
    kind: Literal["total", "stage", "step", "save", "load", "memory"]
    unit: Literal["ms", "MiB"]
    base: Summary | None
    new: Summary | None
    ratio: float | None
    verdict: Verdict
    reason: Reason | None
    detail: str


class StepPair(Part):
    """One denoising step of both dumps, each the median of its samples."""

    step: int
    base_ms: float | None
    new_ms: float | None
    base_kind: str | None
    new_kind: str | None


class MemoryPair(Part):
    """One memory reading at one checkpoint, each the median of its samples."""

    checkpoint: str
    reading: str
    base_mb: float | None
    new_mb: float | None


class Comparison(Part):
    """One dump against the base. An INCOMPARABLE one has no metrics, steps or memory."""

    new: Side
    verdict: Verdict
    checks: list[Check]
    treatment: list[Change]
    environment: list[Change]
    metrics: list[Metric]
    steps: list[StepPair]
    memory: list[MemoryPair]


class Report(Part):
    """Every comparison with the base; `verdict` is the worst of them."""

    schema_: Literal["difftool.compare/v1"] = Field("difftool.compare/v1", alias="schema")
    verdict: Verdict
    base: Side
    comparisons: list[Comparison]


def compare(base: Measured, news: Sequence[Measured], *, accepted: Collection[str] = ()) -> Report:
    """Compares each of `news` with `base`; `accepted` are keys of mismatches that do not count."""
    comparisons = [_compare(base, new, accepted) for new in news]
    verdict = worst(comparison.verdict for comparison in comparisons)
    return Report(schema_="difftool.compare/v1", verdict=verdict, base=_side(base), comparisons=comparisons)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a comparison (`difftool schema compare`)."""
    schema = Report.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _compare(base: Measured, new: Measured, accepted: Collection[str]) -> Comparison:
    checks = make_checks(base, new, accepted)
    comparable = all(check.state != "different" for check in checks)
    metrics = _metrics(base, new) if comparable else []
    return Comparison(
        new=_side(new),
        verdict=worst(metric.verdict for metric in metrics) if comparable else Verdict.INCOMPARABLE,
        checks=checks,
        treatment=list_treatment(base, new),
        environment=list_environment(base, new),
        metrics=metrics,
        steps=_steps(base.steps, new.steps) if comparable else [],
        memory=_memory(base, new) if comparable else [],
    )


def _side(dump: Measured) -> Side:
    return Side(
        path=dump.path,
        format=dump.format,
        request_id=dump.request_id,
        timestamp=dump.timestamp,
        commit_hash=dump.commit_hash,
        tag=dump.tag,
        model=dump.model,
        device=dump.device,
        device_count=dump.device_count,
        items=dump.items,
        runs=dump.runs,
        outputs_per_s=dump.outputs_per_s,
        notes=list(dump.notes),
    )


def _metrics(base: Measured, new: Measured) -> list[Metric]:
    """In the order of the vocabulary; what neither dump has is left out."""
    stages = dict.fromkeys([*base.stages, *new.stages])
    names = ["total", *stages, *AFTER_STAGES]
    return [
        _metric(name, "stage" if name in stages else "memory" if name in MEMORY else name, base, new)
        for name in names
        if name in base.series or name in new.series
    ]


def _metric(name: str, kind: Any, base: Measured, new: Measured) -> Metric:
    ours, theirs = base.series.get(name), new.series.get(name)
    judgement = judge(ours, theirs)
    before, after = _summary(ours), _summary(theirs)
    return Metric(
        name=name,
        kind=kind,
        unit="MiB" if kind == "memory" else "ms",
        base=before,
        new=after,
        ratio=after.median / before.median if before and after and before.median else None,
        verdict=judgement.verdict,
        reason=judgement.reason,
        detail=judgement.detail,
    )


def _summary(series: Series | None) -> Summary | None:
    return summarise(series.values) if series else None


def _steps(base: Sequence[StepReading], new: Sequence[StepReading]) -> list[StepPair]:
    found = []
    for i in range(max(len(base), len(new))):
        ours = base[i] if i < len(base) else None
        theirs = new[i] if i < len(new) else None
        found.append(
            StepPair(
                step=i,
                base_ms=ours.ms if ours else None,
                new_ms=theirs.ms if theirs else None,
                base_kind=ours.kind if ours else None,
                new_kind=theirs.kind if theirs else None,
            )
        )
    return found


def _memory(base: Measured, new: Measured) -> list[MemoryPair]:
    found = []
    for point in dict.fromkeys([*base.memory, *new.memory]):
        ours, theirs = base.memory.get(point, {}), new.memory.get(point, {})
        for reading in dict.fromkeys([*ours, *theirs]):
            pair = (ours.get(reading), theirs.get(reading))
            found.append(MemoryPair(checkpoint=point, reading=reading, base_mb=pair[0], new_mb=pair[1]))
    return found

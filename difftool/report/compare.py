"""`difftool.compare/v1`: perf dumps against the first of them, metric by metric, as data.

Times are milliseconds, memory MiB, ratios new / base.
"""

import shlex
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from difftool.report.comparable import Change, Check, cohort_of, list_environment, list_treatment, make_checks
from difftool.report.floors import Floor, default_floor, is_memory
from difftool.report.judge import Pair, judge
from difftool.report.measured import Measured, StepReading
from difftool.report.perf import Part, Quality, Summary, Tier
from difftool.report.quality import judge_quality
from difftool.report.scores import Score, Shown, compare_accuracy, list_scores
from difftool.report.summary import summarise
from difftool.report.verdict import Judgement, Reason, Series, Verdict, worst

AFTER_STAGES = ("step", "save", "load", "peak_memory", "peak_host_memory")
BENCH_REPEATS = 8
TOO_FEW = Reason.TOO_FEW_SAMPLES
ADVISORY = ("step", "save", "load", "peak_host_memory")  # shown and judged, and no part of the overall verdict


@dataclass(frozen=True)
class Rules:
    """What the user asks of a comparison. `accepted`: keys of mismatches that do not count; `floors`: set by metric,
    which makes the metric count; `noise`: what sessions differ by, by metric; `tier`: what outputs have to be worth.
    `raced`: the dumps are arms of one race, and `difftool bench` is no news to whoever reads of them.
    """

    accepted: Collection[str] = ()
    floors: Mapping[str, Floor] = field(default_factory=dict)
    noise: Mapping[str, float] = field(default_factory=dict)
    tier: Tier | None = None
    raced: bool = False


DEFAULT = Rules()


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
    """One metric of both dumps. `ratio` is of the medians of runs; null where a side is missing or the base is 0.

    `gated`: its verdict counts. `ci95` is the interval of the ratio, `p` the corrected one of its direction, `floor`
    the least change that counts, in the unit; null where nothing could be tested.
    """

    name: str
    kind: Literal["total", "stage", "step", "save", "load", "memory"]
    unit: Literal["ms", "MiB"]
    base: Summary | None
    new: Summary | None
    ratio: float | None
    ci95: tuple[float, float] | None
    p: float | None
    floor: float | None
    gated: bool
    verdict: Verdict
    reason: Reason | None
    detail: str


class QualityCheck(Part):
    """Whether the new outputs reach a tier. `passed` is null where that cannot be said; `reasons` say why not."""

    tier: Tier
    passed: bool | None
    reference: str | None
    reasons: list[str]


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
    """One dump against the base. An INCOMPARABLE one has no scores, metrics, steps or memory.

    `decide` is the command that would measure enough, where one side has too few runs. `scores` and `accuracy` are of
    the outputs of both, to look at: `quality` is what counts.
    """

    new: Side
    verdict: Verdict
    decide: str | None
    checks: list[Check]
    treatment: list[Change]
    environment: list[Change]
    quality: QualityCheck | None
    scores: list[Score]
    accuracy: Shown | None
    metrics: list[Metric]
    steps: list[StepPair]
    memory: list[MemoryPair]


class Report(Part):
    """Every comparison with the base; `verdict` is the worst of them, `cohort` the base's name in a history."""

    schema_: Literal["difftool.compare/v1"] = Field("difftool.compare/v1", alias="schema")
    verdict: Verdict
    cohort: str
    base: Side
    comparisons: list[Comparison]


def compare(base: Measured, news: Sequence[Measured], rules: Rules = DEFAULT) -> Report:
    """Compares each of `news` with `base`."""
    comparisons = [_compare(base, new, rules) for new in news]
    verdict = worst(comparison.verdict for comparison in comparisons)
    return Report(
        schema_="difftool.compare/v1",
        verdict=verdict,
        cohort=cohort_of(base),
        base=_side(base),
        comparisons=comparisons,
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a comparison (`difftool schema compare`)."""
    schema = Report.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _compare(base: Measured, new: Measured, rules: Rules) -> Comparison:
    checks = make_checks(base, new, rules.accepted)
    comparable = all(check.state != "different" for check in checks)
    metrics = _metrics(base, new, rules) if comparable else []
    quality = check_quality(new.quality, rules.tier)
    counted = [metric.verdict for metric in metrics if metric.gated]
    return Comparison(
        new=_side(new),
        verdict=worst([*counted, *_worth(quality)]) if comparable else Verdict.INCOMPARABLE,
        decide=None if rules.raced or not _too_few(metrics) else bench_line(base, new),
        quality=quality,
        scores=list_scores(base.quality, new.quality) if comparable else [],
        accuracy=compare_accuracy(base.quality, new.quality) if comparable else None,
        checks=checks,
        treatment=list_treatment(base, new),
        environment=list_environment(base, new),
        metrics=metrics,
        steps=_steps(base.steps, new.steps) if comparable else [],
        memory=_memory(base, new) if comparable else [],
    )


def _too_few(metrics: Sequence[Metric]) -> bool:
    return any(metric.gated and metric.reason is TOO_FEW for metric in metrics)


def bench_line(base: Measured, new: Measured) -> str | None:
    """What to type to race the two recipes; None for a bare dump, which has none."""
    if "sglang" in (base.format, new.format):
        return None
    ours, theirs = (_recipe_file(Path(dump.path)) for dump in (base, new))
    line = f"difftool bench {ours or 'BASE.yaml'} --arm new={theirs or 'NEW.yaml'} --repeats {BENCH_REPEATS}"
    return line if ours and theirs else f"{line} (difftool inspect {shlex.quote(base.path)} --recipe prints a recipe)"


def _recipe_file(dump: Path) -> str | None:
    """The recipe that lies beside a dump in the records of its run."""
    recipe = dump.with_name("recipe.yaml")
    return shlex.quote(str(recipe)) if recipe.is_file() else None


def check_quality(quality: Quality | None, tier: Tier | None) -> QualityCheck | None:
    """The dump's own answer, or where a tier is asked for here, that of its numbers; None where neither says a word."""
    if quality is None:
        reason = "the dump says nothing of quality: set quality.reference in its recipe"
        return QualityCheck(tier=tier, passed=None, reference=None, reasons=[reason]) if tier else None
    passed, reasons = quality.passed, quality.reasons
    if tier is not None or passed:  # a pass is taken from nobody's word
        passed, reasons = judge_quality(quality.per_output, tier or quality.tier)
    return QualityCheck(tier=tier or quality.tier, passed=passed, reference=quality.reference, reasons=reasons)


def _worth(quality: QualityCheck | None) -> list[Verdict]:
    if quality is None or quality.passed:
        return []
    return [Verdict.INCONCLUSIVE if quality.passed is None else Verdict.QUALITY_FAILED]


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


def _metrics(base: Measured, new: Measured, rules: Rules) -> list[Metric]:
    """In the order of the vocabulary; what neither dump has is left out. Where a stage is only one's, total has it."""
    stages = dict.fromkeys([*base.stages, *new.stages])
    names = [n for n in ("total", *stages, *AFTER_STAGES) if n in base.series or n in new.series]
    pairs = {name: _pair(name, base, new, rules) for name in names}
    judged = judge(pairs)
    return [
        _metric(name, "stage" if name in stages else "memory" if is_memory(name) else name, pairs[name], judged[name])
        for name in names
    ]


def _pair(name: str, base: Measured, new: Measured, rules: Rules) -> Pair:
    ours, theirs = base.series.get(name), new.series.get(name)
    asked = rules.floors.get(name)
    disturbed = [f"{dump.disturbed} of {side}" for side, dump in (("base", base), ("new", new)) if dump.disturbed]
    return Pair(
        base=ours,
        new=theirs,
        floor=asked or default_floor(name),
        gated=asked is not None or (name not in ADVISORY and ours is not None and theirs is not None),
        noise=rules.noise.get(name, 0.0),
        disturbed="" if is_memory(name) else " and ".join(disturbed),
        raced=rules.raced,
    )


def _metric(name: str, kind: Any, pair: Pair, judgement: Judgement) -> Metric:
    before, after = _summary(pair.base), _summary(pair.new)
    middle = [statistics.median(side.per_run) if side else None for side in (pair.base, pair.new)]
    return Metric(
        name=name,
        kind=kind,
        unit="MiB" if kind == "memory" else "ms",
        base=before,
        new=after,
        ratio=middle[1] / middle[0] if middle[0] and middle[1] is not None else None,
        ci95=judgement.interval,
        p=judgement.p,
        floor=judgement.floor,
        gated=pair.gated,
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

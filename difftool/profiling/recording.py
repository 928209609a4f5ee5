"""Collects what a run measured and turns it into a perf dump."""

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING

from difftool.planning.plan import Plan
from difftool.planning.todo import Todo
from difftool.platforms import Platform
from difftool.profiling.environment import commit_hash, describe_environment
from difftool.profiling.timers import Timings
from difftool.report.perf import (
    ACCOUNTING_LIMIT_PCT,
    Failure,
    Measure,
    NamedDuration,
    OutputRecord,
    PerfDump,
    RankInfo,
    RecipeInfo,
    RunInfo,
    Sample,
    StepDuration,
    Throughput,
    Warn,
    accounting_error_pct,
)
from difftool.report.summary import median_index, readings, summarise

if TYPE_CHECKING:
    from difftool.media.save import Saved

PEAKS = {"cuda": "peak_allocated_mb", "mps": "allocated_mb", "cpu": "peak_host_mb"}  # the reading `peak_memory` means


@dataclass
class Recording:
    """Fills up while the run goes on; `build_dump` reads it at the end, or where the run failed."""

    plan: Plan
    todo: Todo
    run_id: str
    process_started: float
    platform: Platform | None = None
    load_ms: float = 0.0
    cold_start_ms: float = 0.0
    warmup_ms: list[float] = field(default_factory=list)
    effective: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    rank: int = 0
    ranks: list[RankInfo] = field(default_factory=list)  # once gathered
    failed_items: list[Failure] = field(default_factory=list)
    failure: Failure | None = None

    def add(
        self,
        position: int,
        repeat: int,
        timings: Timings,
        saved: "Sequence[Saved]",
        *,
        save_ms: float,
        reused: Sequence[str] = (),
    ) -> None:
        """One finished item, by its position in the plan."""
        item = self.plan.items[position]
        assert self.platform is not None
        peaks = {
            key: max((reading.get(key, 0.0) for reading in timings.memory.values()), default=0.0)
            for key in (PEAKS[self.platform.name], "peak_host_mb")
        }
        steps = [StepDuration(step=i, duration_ms=ms, kind="compute") for i, ms in enumerate(timings.steps)]
        records = os.path.join(self.plan.output.dir, ".difftool", self.run_id)
        outputs = [
            OutputRecord(path=os.path.relpath(s.path, records), sha256=s.sha256, width=s.width, height=s.height)
            for s in saved
        ]
        self.samples.append(
            Sample(
                item=position,
                id=item.id,
                output=item.output,
                repeat=repeat,
                seed=item.seed,
                total_ms=timings.total,
                save_ms=save_ms,
                stages_ms=dict(timings.stages),
                denoise_steps_ms=steps,
                memory_checkpoints=dict(timings.memory),
                peak_memory_mb=peaks[PEAKS[self.platform.name]],
                peak_host_memory_mb=peaks["peak_host_mb"],
                outputs=outputs,
                reused=reused,
            )
        )


def build_dump(recording: Recording) -> PerfDump:
    """The dump of a run, finished or failed."""
    plan, samples, ranks = recording.plan, recording.samples, recording.ranks or _ranks(recording)
    chosen = samples[median_index([s.total_ms for s in samples])] if samples else None
    stages = chosen.stages_ms if chosen else {}
    total = chosen.total_ms if chosen else 0.0
    error_pct = accounting_error_pct(total, stages)
    prompt = plan.items[chosen.item if chosen else 0].prompt
    failed = len(recording.failed_items)
    some_failed = Failure(kind="ItemsFailed", message=f"{failed} items failed", stage=None, item=None)
    error = recording.failure or (some_failed if failed else None)
    return PerfDump(
        schema_="difftool.perf/v1",
        status="failed" if error else "ok",
        timestamp=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        request_id=recording.run_id,
        commit_hash=commit_hash(),
        tag=plan.tag,
        total_duration_ms=total,
        steps=[NamedDuration(name=name, duration_ms=ms) for name, ms in stages.items()],
        denoise_steps_ms=chosen.denoise_steps_ms if chosen else [],
        memory_checkpoints=chosen.memory_checkpoints if chosen else {},
        meta={"prompt": prompt, "model": plan.model.name},
        stages_ms=stages,
        run=RunInfo(
            id=recording.run_id,
            difftool=metadata.version("difftool"),
            world_size=plan.degrees.num_gpus,
            resumed_from=recording.todo.resumed_from,
            kept_items=len(plan.items) - len(recording.todo.positions()),
        ),
        recipe=RecipeInfo(
            name=plan.name,
            sha256=plan.recipe_sha256,
            workload_sha256=plan.workload_sha256,
            resolved=dict(plan.recipe),
            provenance=dict(plan.provenance),
        ),
        env=describe_environment(recording.platform) if recording.platform else {},
        measure=Measure(
            warmup=plan.warmup,
            warmup_ms=recording.warmup_ms,
            repeats=plan.repeats,
            order="sequential",
            clock="device events" if recording.platform and recording.platform.name == "cuda" else "perf_counter",
            synced="once per stage",
            load_ms=recording.load_ms,
            cold_start_ms=recording.cold_start_ms,
            accounting_error_pct=error_pct,
        ),
        samples=samples,
        summary={name: summarise(numbers) for name, numbers in readings(samples).items()},
        throughput=_throughput(samples, ranks),
        ranks=ranks,
        effective={name: dict(outcome) for name, outcome in recording.effective.items()},
        warnings=_warnings(samples),
        error=error,
        failed_items=recording.failed_items,
    )


def _throughput(samples: Sequence[Sample], ranks: Sequence[RankInfo]) -> Throughput | None:
    """Replicas work side by side: the busiest one's forward time counts."""
    seconds = max((rank.busy_ms for rank in ranks), default=0.0) / 1e3
    return Throughput(outputs_per_s=len(samples) / seconds) if seconds else None


def _ranks(recording: Recording) -> list[RankInfo]:
    return [rank_info(recording)] if recording.samples and recording.platform else []


def rank_info(recording: Recording) -> RankInfo:
    """This rank's own figures, its median sample's for all that is of one sample."""
    assert recording.platform is not None
    samples = recording.samples
    chosen = samples[median_index([s.total_ms for s in samples])] if samples else None
    return RankInfo(
        rank=recording.rank,
        device=str(recording.platform.device),
        samples=len(samples),
        busy_ms=sum(s.total_ms for s in samples),
        stages_ms=chosen.stages_ms if chosen else {},
        peak_memory_mb=chosen.peak_memory_mb if chosen else 0.0,
        peak_host_memory_mb=chosen.peak_host_memory_mb if chosen else 0.0,
    )


def _warnings(samples: Sequence[Sample]) -> list[Warn]:
    """W-ACCOUNTING: time that no stage claims."""
    found: list[Warn] = []
    for sample in samples:
        error = accounting_error_pct(sample.total_ms, sample.stages_ms)
        if error > ACCOUNTING_LIMIT_PCT:
            message = f"item {sample.item}, repeat {sample.repeat}: stages and total differ by {error:.1f} %"
            found.append(Warn(code="W-ACCOUNTING", message=message))
    return found

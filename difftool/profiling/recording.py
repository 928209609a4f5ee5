"""Collects what a run measured and turns it into a perf dump."""

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING

from torch import Tensor

from difftool.planning.plan import Plan
from difftool.planning.todo import Todo
from difftool.platforms.base import Platform
from difftool.platforms.host import MIB
from difftool.profiling.environment import commit_hash, describe_environment
from difftool.profiling.judges import Judge
from difftool.profiling.quality import examine
from difftool.profiling.timers import Timings
from difftool.report.perf import (
    Cost,
    Failure,
    Measure,
    NamedDuration,
    OutputQuality,
    OutputRecord,
    PerfDump,
    Profile,
    RankInfo,
    RecipeInfo,
    RunInfo,
    Sample,
    Sent,
    StepDuration,
    Telemetry,
    Throughput,
    TraceFile,
    accounting_error_pct,
    cost_of,
)
from difftool.report.quality import build_quality
from difftool.report.reuse import CacheUse, StepKind, summed_up
from difftool.report.summary import median_index, readings, summarise
from difftool.report.warnings import find_warnings
from difftool.traffic import Traffic

if TYPE_CHECKING:
    from difftool.media.save import Saved

PEAKS = {"cuda": "peak_allocated_mb", "mps": "allocated_mb", "cpu": "peak_host_mb"}  # the reading `peak_memory` means


@dataclass
class Recording:
    """Fills up while the run goes on; `build_dump` reads it at the end, or where the run failed."""

    plan: Plan
    todo: Todo
    run_id: str
    started: float  # perf_counter: of the process or, where another plan came before, of this one
    platform: Platform | None = None
    load_ms: float = 0.0
    cold_start_ms: float = 0.0
    compile_ms: float = 0.0  # until the first sample
    late_compile_ms: float = 0.0  # after it
    warmup_ms: list[float] = field(default_factory=list)
    effective: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    rank: int = 0
    weight_bytes: int = 0  # of the parameters that this rank holds, wherever they wait
    ranks: list[RankInfo] = field(default_factory=list)  # once gathered
    failed_items: list[Failure] = field(default_factory=list)
    failure: Failure | None = None
    outputs: list[OutputQuality] = field(default_factory=list)
    judges: Sequence[Judge] = ()
    profile: Profile | None = None
    traffic: dict[str, Traffic] = field(default_factory=dict)  # of the samples, by line
    caches: list[CacheUse] = field(default_factory=list)  # of the samples, where there are caches
    peak_flops: float | None = None  # of the ranks that make an item, where it is known

    def examine(self, position: int, made: Tensor) -> None:
        """Looks at the output of one item, by its position in the plan."""
        self.outputs.append(examine(self.plan, position, made, self.judges))

    def sent(self, lines: Mapping[str, Traffic]) -> None:
        """What this rank sent while it made one more sample."""
        for line, traffic in lines.items():
            self.traffic.setdefault(line, Traffic()).merge(traffic)

    def _seen(self, path: str | os.PathLike[str]) -> str:
        """A path from where the dump lies."""
        return os.path.relpath(path, os.path.join(self.plan.output.dir, ".difftool", self.run_id))

    def keep_profile(self, profile: Profile, snapshot: os.PathLike[str] | None) -> None:
        """What was recorded of an item, and of the memory that it took."""
        snapshots = [] if snapshot is None else [TraceFile(rank=self.rank, path=os.fspath(snapshot))]
        self.profile = profile.model_copy(update={"snapshots": snapshots}).seen(self._seen)

    def add(
        self,
        position: int,
        repeat: int,
        timings: Timings,
        saved: "Sequence[Saved]",
        *,
        save_ms: float,
        telemetry: Telemetry,
        reused: Sequence[str] = (),
        kinds: Sequence[StepKind] = (),
        flops: float | None = None,
    ) -> None:
        """One finished item, by its position in the plan."""
        item = self.plan.items[position]
        assert self.platform is not None
        peaks = {
            key: max((reading.get(key, 0.0) for reading in timings.memory.values()), default=0.0)
            for key in (PEAKS[self.platform.name], "peak_host_mb")
        }
        steps = [
            StepDuration(step=i, duration_ms=ms, kind=kinds[i] if kinds else "compute")
            for i, ms in enumerate(timings.steps)
        ]
        outputs = [
            OutputRecord(path=self._seen(s.path), sha256=s.sha256, width=s.width, height=s.height) for s in saved
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
                telemetry=telemetry,
                flops=flops,
            )
        )


def build_dump(recording: Recording) -> PerfDump:
    """The dump of a run, finished or failed."""
    plan, samples, ranks = recording.plan, recording.samples, recording.ranks or _ranks(recording)
    chosen = samples[median_index([s.total_ms for s in samples])] if samples else None
    stages = chosen.stages_ms if chosen else {}
    total = chosen.total_ms if chosen else 0.0
    prompt = plan.items[chosen.item if chosen else 0].prompt
    failed = len(recording.failed_items)
    some_failed = Failure(kind="ItemsFailed", message=f"{failed} items failed", stage=None, item=None)
    skew = _rank_skew_pct(ranks)
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
        measure=_measure(recording, accounting_error_pct(total, stages)),
        samples=samples,
        summary={name: summarise(numbers) for name, numbers in readings(samples).items()},
        throughput=_throughput(samples, ranks),
        ranks=ranks,
        cost=_cost(recording, ranks),
        effective=_effective(recording),
        rank_skew_pct=skew,
        profile=recording.profile,
        quality=build_quality(recording.outputs, plan.quality.tier, plan.quality.reference),
        warnings=find_warnings(
            samples,
            spare_cpus=_spare_cpus(recording),
            rank_skew_pct=skew,
            late_compile_ms=recording.late_compile_ms,
            budget=plan.budget.bytes if plan.budget is not None else None,
        ),
        error=error,
        failed_items=recording.failed_items,
    )


def _effective(recording: Recording) -> dict[str, dict[str, object]]:
    """What was applied, and of a cache what it did."""
    found = {name: dict(outcome) for name, outcome in recording.effective.items()}
    if "cache" in found:
        found["cache"] |= summed_up(recording.caches)
    return found


def _spare_cpus(recording: Recording) -> int:
    """The processors of this machine that its ranks do not keep busy: on an accelerator, each has one for itself."""
    plan, platform = recording.plan, recording.platform
    ranks = plan.degrees.num_gpus // (plan.nodes.count if plan.nodes else 1)
    return (os.cpu_count() or 1) - ranks * (plan.threads if platform and platform.name == "cpu" else 1)


def _rank_skew_pct(ranks: Sequence[RankInfo]) -> float | None:
    times = [rank.stages_ms["denoising"] for rank in ranks if rank.stages_ms.get("denoising")]
    return 100 * (max(times) / min(times) - 1) if len(times) > 1 else None


def _measure(recording: Recording, error_pct: float) -> Measure:
    plan = recording.plan
    return Measure(
        warmup=plan.warmup,
        warmup_ms=recording.warmup_ms,
        repeats=plan.repeats,
        order="sequential",
        clock="device events" if recording.platform and recording.platform.name == "cuda" else "perf_counter",
        synced="once per stage",
        load_ms=recording.load_ms,
        cold_start_ms=recording.cold_start_ms,
        compile_ms=recording.compile_ms,
        accounting_error_pct=error_pct,
    )


def _throughput(samples: Sequence[Sample], ranks: Sequence[RankInfo]) -> Throughput | None:
    """Replicas work side by side: the busiest one's forward time counts."""
    seconds = max((rank.busy_ms for rank in ranks), default=0.0) / 1e3
    return Throughput(outputs_per_s=len(samples) / seconds) if seconds else None


def _cost(recording: Recording, ranks: Sequence[RankInfo]) -> Cost | None:
    """With the mean sample's share of what all ranks sent."""
    if not (samples := recording.samples):
        return None
    total = sum(sent.bytes for rank in ranks for line in rank.comm.values() for sent in line.values())
    return cost_of(samples, comm_bytes=total / len(samples), peak_flops=recording.peak_flops)


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
        weights_mb=recording.weight_bytes / MIB,
        comm={
            line: {name: Sent(calls=calls, bytes=sent.bytes[name]) for name, calls in sent.calls.items()}
            for line, sent in recording.traffic.items()
        },
        stages_ms=chosen.stages_ms if chosen else {},
        peak_memory_mb=chosen.peak_memory_mb if chosen else 0.0,
        peak_host_memory_mb=chosen.peak_host_memory_mb if chosen else 0.0,
    )

"""What a reader of a dump should know before the numbers, by code."""

from collections.abc import Sequence

from difftool.report.perf import ACCOUNTING_LIMIT_PCT, Sample, Warn, accounting_error_pct

# a power cap is how a busy device runs, and no disturbance
THROTTLES = ("hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
DISTURBED_SHARE = 0.25  # of the samples; fewer do not move a median
SPARE = 0.5  # processors that others may take beyond those that the run leaves idle
SKEW_LIMIT_PCT = 10.0


def find_warnings(
    samples: Sequence[Sample],
    *,
    spare_cpus: int,
    rank_skew_pct: float | None,
    late_compile_ms: float = 0.0,
    budget: int | None = None,
) -> list[Warn]:
    """W-ACCOUNTING, W-THROTTLE, W-NOISY-NEIGHBOUR, W-RANK-SKEW, W-COMPILE and W-BUDGET, where they hold.

    `spare_cpus` are the processors of the machine that the run does not need; `late_compile_ms` is what torch.compile
    took of the samples; `budget` are the bytes that were planned with.
    """
    return [
        *_accounting(samples),
        *_throttle(samples),
        *_neighbours(samples, spare_cpus),
        *_skew(rank_skew_pct),
        *_compile(late_compile_ms),
        *_budget(samples, budget),
    ]


def _accounting(samples: Sequence[Sample]) -> list[Warn]:
    """Time that no stage claims."""
    found: list[Warn] = []
    for sample in samples:
        error = accounting_error_pct(sample.total_ms, sample.stages_ms)
        if error > ACCOUNTING_LIMIT_PCT:
            message = f"item {sample.item}, repeat {sample.repeat}: stages and total differ by {error:.1f} %"
            found.append(Warn(code="W-ACCOUNTING", message=message))
    return found


def _throttle(samples: Sequence[Sample]) -> list[Warn]:
    seen = [set(sample.telemetry.throttle) & set(THROTTLES) if sample.telemetry else set() for sample in samples]
    count, reasons = sum(map(bool, seen)), sorted(set().union(*seen))
    if not count or count < DISTURBED_SHARE * len(samples):
        return []
    message = f"the clock was held down in {count} of {len(samples)} samples: {', '.join(reasons)}"
    return [Warn(code="W-THROTTLE", message=message)]


def _neighbours(samples: Sequence[Sample], spare_cpus: int) -> list[Warn]:
    """Other processes that took processors which the run needs."""
    taken = [s.telemetry.other_cpus for s in samples if s.telemetry and s.telemetry.other_cpus is not None]
    disturbed = [cpus for cpus in taken if cpus > max(0, spare_cpus) + SPARE]
    if not disturbed or len(disturbed) < DISTURBED_SHARE * len(samples):
        return []
    message = (
        f"other processes kept up to {max(disturbed):.1f} processors busy, in {len(disturbed)} of {len(samples)} "
        f"samples, where the run leaves {max(0, spare_cpus)} idle"
    )
    return [Warn(code="W-NOISY-NEIGHBOUR", message=message)]


def _skew(rank_skew_pct: float | None) -> list[Warn]:
    if rank_skew_pct is None or rank_skew_pct <= SKEW_LIMIT_PCT:
        return []
    message = f"the slowest rank denoised {rank_skew_pct:.1f} % longer than the fastest"
    return [Warn(code="W-RANK-SKEW", message=message)]


def _compile(late_ms: float) -> list[Warn]:
    """Sizes that the warm-up did not have."""
    if not late_ms:
        return []
    message = f"torch.compile took {late_ms / 1e3:.1f} s of the samples: items of unlike sizes are compiled for anew"
    return [Warn(code="W-COMPILE", message=message)]


def _budget(samples: Sequence[Sample], budget: int | None) -> list[Warn]:
    """Memory beyond what was planned for: of a CPU with the libraries, which no budget counts."""
    peak = max((sample.peak_memory_mb for sample in samples), default=0.0)
    if budget is None or peak * 2**20 <= budget:
        return []
    message = f"{peak:,.0f} MiB were held at most, and memory.budget is {budget / 2**20:,.0f} MiB"
    return [Warn(code="W-BUDGET", message=message)]

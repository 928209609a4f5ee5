"""One dump of several starts: an arm of a race is measured a turn at a time; its dump reads like that of one run."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from difftool.report.perf import (
    Cost,
    NamedDuration,
    PerfDump,
    RankInfo,
    Sample,
    Sent,
    Throughput,
    Warn,
    accounting_error_pct,
    cost_of,
)
from difftool.report.summary import median_index, readings, summarise
from difftool.report.warnings import DISTURBED_SHARE

Order = Literal["sequential", "ABBA"]


def merge_turns(opening: PerfDump, turns: Sequence[PerfDump], *, order: Order, notes: Sequence[Warn] = ()) -> PerfDump:
    """The dump of an arm from those of its turns, one sample of every item each.

    The `opening` start loaded the model and wrote the files; where it is none of the `turns` its samples were warm-up,
    and the first turn's take over its files. `notes` are warnings of the race.
    """
    assert turns, "a race without turns has no dump"
    samples = [sample for turn in turns for sample in turn.samples]
    measure = opening.measure
    if opening is not turns[0]:
        samples = _with_files(samples, opening.samples)
        spent = [sample.total_ms for sample in opening.samples]
        measure = measure.model_copy(update={"warmup_ms": [*measure.warmup_ms, *spent]})
    chosen = samples[median_index([sample.total_ms for sample in samples])]
    ranks = [_rank([turn.ranks[i] for turn in turns]) for i in range(len(turns[0].ranks))]
    busy = max((rank.busy_ms for rank in ranks), default=0.0)
    error_pct = accounting_error_pct(chosen.total_ms, chosen.stages_ms)
    of_the_race = {"repeats": len(turns), "order": order, "accounting_error_pct": error_pct}
    skews = [turn.rank_skew_pct for turn in turns]
    return opening.model_copy(
        update={
            "total_duration_ms": chosen.total_ms,
            "steps": [NamedDuration(name=name, duration_ms=ms) for name, ms in chosen.stages_ms.items()],
            "denoise_steps_ms": chosen.denoise_steps_ms,
            "memory_checkpoints": chosen.memory_checkpoints,
            "stages_ms": chosen.stages_ms,
            "measure": measure.model_copy(update=of_the_race),
            "samples": samples,
            "summary": {name: summarise(numbers) for name, numbers in readings(samples).items()},
            "throughput": Throughput(outputs_per_s=len(samples) / busy * 1e3) if busy else None,
            "ranks": ranks,
            "cost": _cost(turns),
            "rank_skew_pct": skews[median_index([skew or 0.0 for skew in skews])],
            "warnings": [*notes, *_warnings(turns)],
        }
    )


def _with_files(samples: Sequence[Sample], opening: Sequence[Sample]) -> list[Sample]:
    """The first sample of each item holds what the opening one wrote, and how long that took."""
    written = {(sample.item, sample.seed): sample for sample in opening}
    found = []
    for sample in samples:
        first = written.pop((sample.item, sample.seed), None)
        files = {"outputs": first.outputs, "save_ms": first.save_ms} if first else {}
        found.append(sample.model_copy(update=files))
    return found


def _rank(turns: Sequence[RankInfo]) -> RankInfo:
    """One rank: what it did in all turns, and the middle turn's own figures."""
    middle = turns[median_index([turn.busy_ms for turn in turns])]
    comm: dict[str, dict[str, Sent]] = {}
    for turn in turns:
        for line, collectives in turn.comm.items():
            for name, sent in collectives.items():
                known = comm.setdefault(line, {}).get(name, Sent(calls=0, bytes=0))
                comm[line][name] = Sent(calls=known.calls + sent.calls, bytes=known.bytes + sent.bytes)
    counted = {"samples": sum(turn.samples for turn in turns), "busy_ms": sum(turn.busy_ms for turn in turns)}
    return middle.model_copy(update={**counted, "comm": comm})


def _cost(turns: Sequence[PerfDump]) -> Cost | None:
    """The mean sample's; every turn has as many samples, on the same device."""
    costs = [turn.cost for turn in turns if turn.cost is not None]
    if len(costs) < len(turns):
        return None
    samples = [sample for turn in turns for sample in turn.samples]
    sent = sum(cost.comm_bytes for cost in costs) / len(costs)
    return cost_of(samples, comm_bytes=sent, peak_flops=costs[0].peak_flops)


def _warnings(turns: Sequence[PerfDump]) -> list[Warn]:
    """Each code of enough turns once, in the words of the first; fewer do not move a median."""
    found = {warn.code: warn for turn in reversed(turns) for warn in reversed(turn.warnings)}
    counts = Counter(code for turn in turns for code in {warn.code for warn in turn.warnings})
    return [
        warn.model_copy(update={"message": f"in {counts[code]} of {len(turns)} turns: {warn.message}"})
        for code, warn in found.items()
        if counts[code] >= DISTURBED_SHARE * len(turns)
    ]

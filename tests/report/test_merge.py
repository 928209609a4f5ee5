"""The dump of an arm that took turns reads like that of one run."""

import pytest
from report.dumps import SAMPLE, dump

from difftool.report.merge import merge_turns
from difftool.report.perf import PerfDump, Warn

SENT = {"ulysses": {"all_to_all": {"calls": 2, "bytes": 100}}}


def turn(repeat: int, total_ms: float, **changes) -> PerfDump:
    sample = {**SAMPLE, "repeat": repeat, "total_ms": total_ms, "outputs": [], "save_ms": 0.0}
    sample["stages_ms"] = {"denoising": total_ms - 30.0, "decoding": 30.0}
    rank = {
        **{"rank": 0, "device": "cpu", "samples": 1, "busy_ms": total_ms, "comm": SENT, "peak_memory_mb": 300.0},
        **{"stages_ms": sample["stages_ms"], "peak_host_memory_mb": 300.0},
    }
    content = {"samples": [sample], "ranks": [rank], "cost": {"comm_bytes": 10.0 * repeat}, **changes}
    return dump(**content)


TURNS = [turn(1, 140.0), turn(2, 120.0), turn(3, 130.0)]
QUALITY = {"tier": "near", "reference": "x", "per_output": [{"item": 0, "psnr": 50.0, "ssim": 1.0}], "passed": True}
OPENING = dump(samples=[{**SAMPLE, "total_ms": 900.0, "save_ms": 5.0}], quality=QUALITY)


@pytest.fixture
def merged():
    return merge_turns(OPENING, TURNS, order="ABBA")


def test_every_turn_is_a_sample_and_the_single_values_are_the_median_ones(merged):
    assert [(sample.repeat, sample.total_ms) for sample in merged.samples] == [(1, 140.0), (2, 120.0), (3, 130.0)]
    assert merged.total_duration_ms == 130.0 and merged.stages_ms == {"denoising": 100.0, "decoding": 30.0}
    assert [(stage.name, stage.duration_ms) for stage in merged.steps] == [("denoising", 100.0), ("decoding", 30.0)]
    assert (merged.summary["total"].median, merged.summary["total"].n) == (130.0, 3)
    PerfDump.model_validate_json(merged.model_dump_json(by_alias=True))


def test_the_opening_is_warm_up_and_its_files_are_the_first_samples(merged):
    assert merged.measure.warmup_ms == [900.0]
    assert [[output.path for output in sample.outputs] for sample in merged.samples] == [["../../red.png"], [], []]
    assert [sample.save_ms for sample in merged.samples] == [5.0, 0.0, 0.0]
    assert (merged.measure.order, merged.measure.repeats, merged.measure.load_ms) == ("ABBA", 3, 900.0)


def test_the_start_that_wrote_the_files_has_judged_them(merged):
    assert merged.quality == OPENING.quality and merged.quality.passed


def test_an_opening_that_counts_is_no_warm_up():
    merged = merge_turns(TURNS[0], TURNS, order="sequential")
    assert merged.measure.warmup_ms == [] and len(merged.samples) == 3 and merged.measure.order == "sequential"


def test_ranks_add_up_what_they_did(merged):
    (rank,) = merged.ranks
    assert (rank.samples, rank.busy_ms) == (3, 390.0)
    assert (rank.comm["ulysses"]["all_to_all"].calls, rank.comm["ulysses"]["all_to_all"].bytes) == (6, 300)
    assert rank.stages_ms["denoising"] == 100.0
    assert merged.throughput.outputs_per_s == pytest.approx(3 / 0.390)
    assert merged.cost.comm_bytes == 20.0 and merged.cost.flops is None


def test_the_part_of_the_peak_is_that_of_all_turns_together():
    cost = {"comm_bytes": 0.0, "peak_flops": 1e12}
    turns = [turn(i, 130.0 + 100 * i, cost=cost) for i in range(3)]  # 100, 200 and 300 ms of denoising
    counted = [one.model_copy(update={"samples": [one.samples[0].model_copy(update={"flops": 6e10})]}) for one in turns]
    merged = merge_turns(OPENING, counted, order="ABBA").cost
    assert (merged.flops, merged.peak_flops) == (6e10, 1e12)
    assert merged.mfu == pytest.approx(18e10 / 0.6 / 1e12)


def test_a_warning_of_enough_turns_is_told_once_and_those_of_the_race_first():
    warned = [{"code": "W-THROTTLE", "message": "hot"}]
    turns = [turn(i, 130.0, warnings=warned if i in (2, 3) else []) for i in range(1, 9)]
    note = Warn(code="W-NOT-INTERLEAVED", message="no room")
    found = merge_turns(OPENING, turns, order="ABBA", notes=[note]).warnings
    assert [(warn.code, warn.message) for warn in found] == [
        ("W-NOT-INTERLEAVED", "no room"),
        ("W-THROTTLE", "in 2 of 8 turns: hot"),
    ]
    once = [turn(i, 130.0, warnings=warned if i == 2 else []) for i in range(1, 9)]
    assert merge_turns(OPENING, once, order="ABBA").warnings == []

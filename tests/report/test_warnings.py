"""What a dump warns of, and what it does not."""

import pytest
from report.dumps import SAMPLE

from difftool.report.perf import Sample
from difftool.report.warnings import find_warnings


def samples(*telemetry, **changes):
    return [Sample.model_validate({**SAMPLE, "repeat": i, "telemetry": t, **changes}) for i, t in enumerate(telemetry)]


def told(found):
    return [f"{warn.code}: {warn.message}" for warn in found]


def find(found, *, spare_cpus=0, rank_skew_pct=None):
    return told(find_warnings(found, spare_cpus=spare_cpus, rank_skew_pct=rank_skew_pct))


def test_a_quiet_run_has_no_warning():
    assert find(samples({"other_cpus": 0.5, "throttle": ["sw_power_cap"]}, None, {}), rank_skew_pct=10.0) == []


def test_time_that_no_stage_claims_is_told():
    assert find(samples(None, stages_ms={"denoising": 100.0})) == [
        "W-ACCOUNTING: item 0, repeat 0: stages and total differ by 23.1 %"
    ]


def test_a_clock_that_was_held_down_in_a_quarter_of_the_samples_is_told():
    hot, cool = {"throttle": ["sw_power_cap", "hw_thermal_slowdown"]}, {"throttle": []}
    assert find(samples(hot, cool, cool, cool)) == [
        "W-THROTTLE: the clock was held down in 1 of 4 samples: hw_thermal_slowdown"
    ]
    assert find(samples(hot, cool, cool, cool, cool)) == []


@pytest.mark.parametrize(("spare", "warned"), [(-4, True), (0, True), (1, True), (2, False)])
def test_others_disturb_where_they_take_processors_that_the_run_needs(spare, warned):
    found = find(samples({"other_cpus": 1.6}, {"other_cpus": 0.1}), spare_cpus=spare)
    assert found == warned * [
        "W-NOISY-NEIGHBOUR: other processes kept up to 1.6 processors busy, in 1 of 2 samples, where the run leaves "
        f"{max(0, spare)} idle"
    ]


def test_samples_that_waited_for_a_compiler_are_told():
    found = find_warnings(samples(None), spare_cpus=0, rank_skew_pct=None, late_compile_ms=1234.0)
    assert told(found) == [
        "W-COMPILE: torch.compile took 1.2 s of the samples: items of unlike sizes are compiled for anew"
    ]


def test_memory_beyond_the_budget_is_told():
    found = samples(None)
    held = int(max(sample.peak_memory_mb for sample in found) * 2**20)
    asked = {"spare_cpus": 0, "rank_skew_pct": None}
    assert told(find_warnings(found, **asked, budget=held)) == []
    (said,) = told(find_warnings(found, **asked, budget=held - 1))
    assert said.startswith("W-BUDGET: ") and "MiB were held at most, and memory.budget is" in said


def test_ranks_that_differ_are_told():
    assert find(samples(None), rank_skew_pct=10.1) == [
        "W-RANK-SKEW: the slowest rank denoised 10.1 % longer than the fastest"
    ]

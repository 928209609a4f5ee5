"""The numbers behind a verdict, against scipy, by hand, and on a thousand simulated pairs."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from difftool.report import statistics
from difftool.report.floors import Floor, default_floor, parse_threshold
from difftool.report.judge import Pair, judge
from difftool.report.statistics import can_decide, holm, missing_runs, rank_test, ratio_interval
from difftool.report.summary import median_interval, run_readings
from difftool.report.verdict import Series, Verdict


@pytest.mark.parametrize(("base_runs", "new_runs"), [(3, 3), (8, 8), (8, 5), (20, 13), (50, 50)])
def test_the_rank_test_is_scipy_s_where_nothing_ties(base_runs, new_runs):
    random = np.random.default_rng(base_runs)
    base, new = random.normal(10, 1, base_runs), random.normal(10.5, 1, new_runs)
    expected = stats.mannwhitneyu(new, base, alternative="greater", method="exact").pvalue
    assert rank_test(list(base), list(new)) == pytest.approx(expected, rel=1e-9)


def test_with_ties_the_rank_test_counts_every_way_to_deal_the_readings_out():
    base, new = [1.0, 1.0, 2.0, 2.0], [2.0, 2.0, 2.0, 3.0]
    method = stats.PermutationMethod(n_resamples=math.comb(8, 4))
    expected = stats.mannwhitneyu(new, base, alternative="greater", method=method).pvalue
    assert rank_test(base, new) == pytest.approx(expected, rel=1e-9)
    assert rank_test([300.0] * 8, [600.0] * 8) == pytest.approx(1 / 12870)
    assert rank_test([300.0] * 8, [300.0] * 8) == 1.0


def test_many_runs_are_tested_by_scipy_s_approximation():
    random = np.random.default_rng(0)
    base, new = random.integers(0, 40, 60).astype(float), random.integers(4, 44, 55).astype(float)
    expected = stats.mannwhitneyu(new, base, alternative="greater", method="asymptotic").pvalue
    assert rank_test(list(base), list(new)) == pytest.approx(expected, rel=1e-9)
    assert rank_test([1.0] * 60, [1.0] * 60) == 1.0


def test_the_interval_of_a_ratio_is_the_same_every_time_and_that_of_scipy_s_bootstrap():
    random = np.random.default_rng(3)
    base, new = random.normal(100, 2, 30), random.normal(110, 3, 30)
    found = ratio_interval(list(base), list(new))
    assert found == ratio_interval(list(base), list(new))

    def ratio(ours, theirs, axis):
        return np.median(theirs, axis=axis) / np.median(ours, axis=axis)

    expected = stats.bootstrap((base, new), ratio, method="percentile", rng=1).confidence_interval
    assert found == pytest.approx(tuple(expected), abs=2e-3)  # 10 000 resamples of each


def test_holm_by_hand():
    # sorted: 0.01 · 4, 0.02 · 3, 0.03 · 2, 0.5 · 1, and none less than the one before
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_fewest_runs_that_can_decide():
    # C(10, 5) = 252 and C(12, 6) = 924; 4 / 252 = 0.0159, 4 / 924 = 0.0043
    assert [can_decide(n, n, 4) for n in (5, 6)] == [False, True]
    assert not can_decide(500, 2, 1)
    assert missing_runs(1, 1, 4) == (5, 5)
    assert missing_runs(8, 2, 4) == (0, 2)
    assert missing_runs(8, 8, 4) == (0, 0)


def test_the_interval_of_a_median_by_hand():
    # of 6: 2 · 0.5 ** 6 = 3.1 % lies outside the range; of 9: 2 · (1 + 9) / 512 = 3.9 % outside the second ones
    assert median_interval([5.0, 1.0, 2.0, 3.0, 4.0]) is None
    assert median_interval([6.0, 5.0, 1.0, 2.0, 3.0, 4.0]) == (1.0, 6.0)
    assert median_interval([float(i) for i in range(1, 10)]) == (2.0, 8.0)


def test_a_run_of_two_items_is_one_reading(sample):
    samples = [
        sample(repeat=r, item=i, total_ms=100.0 + 10 * i + r, peak_memory_mb=7.0 + i) for r in (0, 1) for i in (0, 1)
    ]
    samples.append(sample(repeat=2, item=0))  # lacks the second item
    found = run_readings(samples)
    assert (found["total"], found["peak_memory"]) == ([105.0, 106.0], [8.0, 8.0])


@pytest.fixture
def sample():
    from report.dumps import SAMPLE

    from difftool.report.perf import Sample

    return lambda **values: Sample.model_validate({**SAMPLE, **values})


@pytest.mark.parametrize(
    ("text", "metric", "floor"),
    [
        ("total=3%", "total", Floor(0.03, 0.0)),
        ("total=3%,50ms", "total", Floor(0.03, 50.0)),
        ("denoising=1.5 s", "denoising", Floor(0.0, 1500.0)),
        ("peak_memory=2%,0.5GiB", "peak_memory", Floor(0.02, 512.0)),
    ],
)
def test_a_threshold_is_a_share_an_amount_or_both(text, metric, floor):
    assert parse_threshold(text) == (metric, floor)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("total", "is not METRIC=AMOUNT"),
        ("total=3", "'3' is no amount; use a number with %, ms, s, MiB or GiB"),
        ("total=3%,4%", "says the same twice"),
        ("total=16MiB", "16MiB is no amount of total; use ms or s"),
        ("peak_memory=5ms", "5ms is no amount of peak_memory; use MiB or GiB"),
        ("total=nan%", "'nan%' is no amount"),
    ],
)
def test_a_threshold_that_says_nothing_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        parse_threshold(text)


def simulated(random, *, slower=1.0, noise=0.01, spikes=0.0):
    """Two arms of eight runs: 940 ms of denoising and 60 of decoding; a spiked run takes up to 15 % longer."""

    def series(values):
        return Series(tuple(values.tolist()), tuple(values.tolist()))

    def arm(denoising):
        times = denoising * (1 + noise * random.standard_normal(8))
        times = np.where(random.random(8) < spikes, times * (1 + 0.15 * random.random(8)), times)
        decoding = 60 * (1 + noise * random.standard_normal(8))
        memory = np.full(8, 300.0)
        return {"total": times + decoding, "denoising": times, "decoding": decoding, "peak_memory": memory}

    base, new = arm(940.0), arm(940.0 * slower)
    return {name: Pair(series(base[name]), series(new[name]), default_floor(name), gated=True) for name in base}


def verdicts(pairs, count, **how):
    """How often each verdict is the worst of a pair of arms."""
    random = np.random.default_rng(7)
    found = Counter()
    for _ in range(count):
        judged = {judgement.verdict for judgement in judge(pairs(random, **how)).values()}
        moved = judged & {Verdict.REGRESSED, Verdict.IMPROVED}
        found[max(moved or judged, key=list(Verdict).index)] += 1
    return found


@pytest.mark.parametrize("how", [{}, {"spikes": 0.05}, {"noise": 0.03, "spikes": 0.05}])
def test_where_nothing_changed_at_most_one_pair_in_a_hundred_has_a_verdict(how, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)  # ten times as many move no percentile by a noticeable amount
    found = verdicts(simulated, 400, **how)
    assert found[Verdict.REGRESSED] + found[Verdict.IMPROVED] <= 4, found


def test_a_slowdown_of_5_per_cent_is_found_and_with_spiked_runs_never_passed_over(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    assert verdicts(simulated, 200, slower=1.05)[Verdict.REGRESSED] >= 190
    found = verdicts(simulated, 200, slower=1.05, spikes=0.05)
    assert found[Verdict.REGRESSED] >= 150
    assert found[Verdict.REGRESSED] + found[Verdict.INCONCLUSIVE] == 200

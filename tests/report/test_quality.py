"""When a run's outputs are worth the tier that was asked for."""

import pytest
from scipy.stats import binomtest

from difftool.report.perf import OutputQuality
from difftool.report.quality import build_quality, judge_quality, reached, wilson


def output(**values):
    return OutputQuality(item=0, **values)


@pytest.mark.parametrize(
    ("values", "tier"),
    [
        ({"max_abs": 0.0, "ssim": 1.0}, "exact"),
        ({"max_abs": 0.01, "psnr": 45.0, "ssim": 0.2}, "lossless"),
        ({"max_abs": 0.1, "psnr": 44.9, "ssim": 0.95}, "near"),
        ({"max_abs": 0.1, "psnr": 44.9, "ssim": 0.94}, "lossy"),
        ({"max_abs": 0.5, "psnr": 22.0, "ssim": 0.8}, "lossy"),
        ({"max_abs": 0.5, "psnr": 21.9, "ssim": 0.99}, "none"),
        ({"max_abs": 0.0, "tripwires": ["black"]}, "none"),
    ],
)
def test_an_output_reaches_the_best_tier_that_its_numbers_show(values, tier):
    assert reached(output(**values)) == tier


def test_the_worst_output_decides_and_is_named():
    good, bad = output(psnr=50.0, ssim=0.99, max_abs=0.1), output(psnr=20.0, ssim=0.9, max_abs=0.5, output=1)
    assert judge_quality([good, good, bad], "lossy") == (
        False,
        ["output 1 of item 0 has PSNR 20, and lossy asks for 22"],
    )
    assert judge_quality([good, good], "near") == (True, [])


def test_a_failed_tripwire_fails_every_tier_and_none_too():
    black = output(psnr=60.0, ssim=1.0, max_abs=0.001, tripwires=["black"])
    assert judge_quality([black], "none") == (False, ["output 0 of item 0 fails the tripwire black"])


def test_noise_is_a_guess_that_counts_where_a_tier_is_asked_for():
    noise = output(max_abs=0.0, tripwires=["noise"])
    assert judge_quality([noise], "none") == (True, [])
    assert judge_quality([noise], "lossy") == (False, ["output 0 of item 0 fails the tripwire noise"])


def test_what_was_not_computed_is_never_a_pass():
    assert judge_quality([output(psnr=31.0, max_abs=0.2)], "near") == (
        None,
        ["output 0 of item 0 has no SSIM, which near asks for"],
    )
    assert judge_quality([output()], "exact") == (
        None,
        ["output 0 of item 0 has no max_abs, which exact asks for"],
    )
    assert judge_quality([], "near") == (None, ["no output was compared with a reference"])


def test_without_a_tier_the_tripwires_alone_count():
    assert judge_quality([output()], "none") == (True, [])


def test_what_is_missing_says_why():
    assert judge_quality([output(max_abs=0.1, psnr=40.0, missing=["ssim needs sides of 11 pixels"])], "near")[1] == [
        "output 0 of item 0 has no SSIM, which near asks for (ssim needs sides of 11 pixels)"
    ]


def test_the_block_of_a_dump_ranks_every_output_and_counts_what_shows_its_prompt():
    outputs = [output(max_abs=0.0, right=True), output(psnr=31.0, ssim=0.96, max_abs=0.1, right=False), output()]
    block = build_quality(outputs, "none", "the files in refs")
    assert [one.tier for one in block.per_output] == ["exact", "near", "none"]
    assert (block.passed, block.accuracy.right, block.accuracy.count) == (True, 1, 2)
    assert build_quality([output()], "none", None).accuracy is None


def test_a_run_that_made_nothing_is_no_pass_of_a_tier():
    assert build_quality([], "none", None) is None
    assert build_quality([], "near", "the files in refs").passed is None


@pytest.mark.parametrize(("right", "count"), [(8, 10), (0, 5), (5, 5), (490, 512)])
def test_the_interval_of_a_share_is_wilson_s(right, count):
    theirs = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right, count) == pytest.approx((theirs.low, theirs.high), abs=1e-5)

"""The fit of TeaCache's polynomial to measured changes."""

import pytest

from difftool.errors import PlanError
from difftool.report.fit import fit_changes, measured_changes
from difftool.report.reuse import CacheUse

COEFFICIENTS = (2.0, -1.0, 0.5)


def changes(count, spread=0.0):
    inputs = [0.02 * (i + 1) for i in range(count)]
    return [(x, 2 * x * x - x + 0.5 + spread * (-1) ** i) for i, x in enumerate(inputs)]


def test_a_polynomial_is_found_again():
    fit = fit_changes(changes(12), degree=2)
    assert fit.coefficients == pytest.approx(COEFFICIENTS, rel=1e-6)
    assert (fit.points, fit.r2, fit.rms) == (12, pytest.approx(1), pytest.approx(0, abs=1e-12))


def test_what_it_does_not_explain_is_said():
    fit = fit_changes(changes(12, spread=0.01), degree=2)
    assert 0.5 < fit.r2 < 1 and fit.rms == pytest.approx(0.01, rel=0.2)


def test_too_few_unlike_changes_are_refused_with_the_way_out():
    with pytest.raises(PlanError, match="4 unlike changes do not decide the 5 coefficients of degree 4") as error:
        fit_changes([*changes(4), *changes(4)])
    assert error.value.hint == "use more steps or more prompts, or a lower --degree"


def test_steps_that_nothing_was_compared_with_are_left_out():
    denoiser = {"steps": [0, 1, 2], "mask": None, "decisions": {}, "outputs": [None, 0.2, 0.3]}
    denoiser["changes"] = {"blocks": [None, 0.1, 0.15], "others": [None, None, None]}
    use = CacheUse(kinds=[], forwards=3, blocks_run={}, blocks={}, denoisers={"a": denoiser, "b": denoiser})
    assert measured_changes([use]) == [(0.1, 0.2), (0.15, 0.3)] * 2

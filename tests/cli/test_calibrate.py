"""What `difftool calibrate` prints of a fit, and what it writes; the run that it measures is in test_cached_run.py."""

import json
from pathlib import Path

import pytest
import yaml

from difftool.cli import calibrate
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions

ASKED = ("calibrate", "builtin:shapes-image", "-p", "a red circle", "--degree", "1", "-o", "tea.yaml")


@pytest.fixture
def measured(monkeypatch):
    """Changes on the line y = 2 x; returns how the measured run was listened to."""
    modes = []

    def measure(loaded, *, mode, verbose):
        modes.append(mode)
        return dict(make_plan(loaded, run=RunOptions()).recipe), [(0.1, 0.2), (0.2, 0.4), (0.3, 0.6)]

    monkeypatch.setattr(calibrate, "_measured", measure)
    return modes


def test_what_was_found_is_told_and_written(difftool, measured):
    answer = difftool(*ASKED)
    assert (answer.code, answer.err, measured) == (0, "", ["plain"])
    fit, coefficients, threshold, path = answer.out.splitlines()
    assert fit.startswith("3 changes, degree 1: R2 1.000, rms ") and coefficients.startswith("coefficients 2, ")
    assert (threshold, path) == ("threshold 0.8, which reuses about every second step", "tea.yaml")
    teacache = yaml.safe_load(Path("tea.yaml").read_text())["cache"]["teacache"]
    assert teacache["threshold"] == 0.8 and teacache["coefficients"][0] == pytest.approx(2)


def test_quiet_tells_only_where_the_recipe_is(difftool, measured):
    answer = difftool(*ASKED, "--quiet")
    assert (answer.code, answer.out, answer.err, measured) == (0, "tea.yaml\n", "", ["quiet"])


def test_json_is_one_object_with_all_that_was_found(difftool, measured):
    found = json.loads(difftool(*ASKED, "--json").out)
    assert (found["recipe"], found["degree"], found["points"], found["threshold"]) == ("tea.yaml", 1, 3, 0.8)
    assert found["coefficients"][0] == pytest.approx(2) and found["r2"] == pytest.approx(1)
    assert set(found) == {"recipe", "degree", "coefficients", "points", "r2", "rms", "mean", "threshold"}
    assert measured == ["plain"]


def test_quiet_and_json_exclude_each_other(difftool, measured):
    assert (difftool(*ASKED, "--quiet", "--json").code, measured) == (2, [])

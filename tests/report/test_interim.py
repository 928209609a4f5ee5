"""Looking at a race before its end: what may end it, and that looking often makes no change out of chance."""

import numpy as np
import pytest
from report.golden.pairs import FIVE, PAIRS, as_text, runs

from difftool.launch.race import Schedule
from difftool.report import statistics
from difftool.report.compare import compare
from difftool.report.interim import is_settled
from difftool.report.measured import read_measured

P_31 = (runs(940), runs(1040, FIVE))  # REGRESSED with p 4 / 1287 = 0.0031


@pytest.fixture
def compared(tmp_path):
    def of(base, new):
        for name, content in (("base", base), ("new", new)):
            (tmp_path / name).write_text(as_text(content))
        return compare(read_measured(tmp_path / "base"), [read_measured(tmp_path / "new")]).comparisons[0]

    return of


@pytest.mark.parametrize(
    ("name", "settled"),
    [
        ("identical", True),
        ("plus 3 % at n=8", True),
        ("minus 10 % at n=8", True),
        ("25 against 50 steps", True),
        ("chance could have done it", False),
        ("plus 3 % at n=5", False),
    ],
)
def test_what_ends_a_race_early(compared, name, settled):
    assert is_settled(compared(PAIRS[name].base, PAIRS[name].new)) == settled


def test_a_change_that_is_less_than_certain_waits_for_the_end(compared):
    found = compared(*P_31)
    assert found.verdict == "REGRESSED" and not is_settled(found)


def test_a_hundred_races_of_a_recipe_against_itself_find_no_change(compared, monkeypatch):
    """At 3 % noise most of them look often; ending at the first change that shows would find three."""
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    random, looks = np.random.default_rng(7), Schedule(8, 1, 1e9).looks(2)
    found = []
    for _ in range(100):
        arms = 940.0 * 0.03 * random.standard_normal((2, looks[-1]))
        for look in looks:
            comparison = compared(*(runs(940.0, arm[:look].tolist()) for arm in arms))
            if is_settled(comparison):
                break
        found.append(comparison.verdict)
    assert found.count("REGRESSED") + found.count("IMPROVED") <= 1, found

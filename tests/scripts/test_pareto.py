"""scripts/pareto.py: which points no other one beats, and a race of two recipes that ends in the table."""

import math
import subprocess
import sys

import pytest
from tiny import ROOT

from scripts.pareto import RECIPES, Point, beats, on_front, table


def point(name, speed, worst, spread=0.0):
    return Point(name, speed, (speed - spread, speed + spread), [worst, worst + 4])


def test_a_point_is_beaten_by_one_that_is_no_worse_in_both_and_better_in_one():
    plain = point("plain", 1.0, math.inf)
    assert beats(point("a", 2.0, 30.0), point("b", 1.5, 30.0)) and beats(point("a", 1.5, 31.0), point("b", 1.5, 30.0))
    assert not beats(point("a", 2.0, 29.0), point("b", 1.5, 30.0))
    assert not beats(plain, plain) and beats(plain, point("slower", 0.5, 50.0))


def test_the_front_says_what_the_intervals_do_not_decide():
    fast, near, same = point("fast", 2.0, 30.0, 0.1), point("near", 1.9, 28.0, 0.1), point("same", 1.5, 30.0)
    points = [fast, near, same, point("good", 1.2, 40.0)]
    assert [on_front(each, points) for each in points] == ["yes", "perhaps not: fast", "no: fast", "yes"]


def test_the_table_has_the_fastest_first():
    points = [point("plain", 1.0, math.inf), Point("masked", 1.5, (1.4, 1.625), [20.0, 33.0], "2 of 2", 1.75)]
    assert table(points) == (
        "| recipe | speed (95 %) | by FLOPs | PSNR, worst and median | right | on the front |\n"
        "|---|---|--:|--:|---|---|\n"
        "| masked | 1.50 (1.40 to 1.62) | 1.75 | 20.0 and 26.5 | 2 of 2 | yes |\n"
        "| plain | 1.00 |  | equal |  | yes |\n"
    )


@pytest.mark.slow
def test_a_race_of_two_recipes_ends_in_the_table(tmp_path):
    few = ("--prompts", "1", "--steps", "8", "--repeats", "2", "--device", "cpu", "--max-time", "60s")
    command = [sys.executable, ROOT / "scripts" / "pareto.py", "builtin:shapes-image", "--only", "scm-medium,teacache"]
    ran = subprocess.run([*command, *few], capture_output=True, text=True, timeout=500, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ") for row in ran.stdout.splitlines()[2:]}
    assert set(rows) == {"plain", "scm-medium", "teacache"} and rows["plain"][3] == "equal"
    assert float(rows["scm-medium"][2]) > 1.3 and rows["scm-medium"][4] in ("0 of 1", "1 of 1")
    assert not list(tmp_path.iterdir())


def test_a_recipe_that_is_none_is_refused():
    command = [sys.executable, ROOT / "scripts" / "pareto.py", "builtin:shapes-image", "--only", "scm-none,bf16"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2 and f"scm-none is none of {', '.join(RECIPES)}" in ran.stderr

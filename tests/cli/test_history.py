"""`difftool history`, whole, and what `compare-perf --history` makes of it."""

import json
import re
from pathlib import Path

import pytest
from report.golden.pairs import runs


def write(name, denoising=940.0):
    Path(f"{name}.json").write_text(json.dumps({**runs(denoising), "request_id": name}))
    return f"{name}.json"


@pytest.fixture
def cohort(difftool):
    """The name of the cohort of these dumps, of which two are in the history."""
    answer = difftool("history", "add", write("a", 990.0), write("b"))
    assert (answer.code, answer.err) == (0, "")
    name = re.search(r"cohort (\w{16})", answer.out)[1]
    assert answer.out == f"a.json: session 1 of cohort {name}\nb.json: session 2 of cohort {name}\n"
    return name


def test_a_history_is_shown_by_cohort(difftool, cohort):
    assert difftool("history", "show").out == (
        f"cohort {cohort}: builtin:shapes-image on 1 x cuda NVIDIA H100\n"
        "     run  commit  runs   total  denoising  peak_memory\n"
        "     a    N/A        8  1050.0      990.0        300.0\n"
        "     b    N/A        8  1000.0      940.0        300.0\n"
        "  sessions differ by: not known before 5 sessions\n"
    )


def test_a_blessed_session_is_marked_and_one_that_drifted_is_told(difftool, cohort):
    answer = difftool("history", "bless", "b.json", "--reason", "the first good one")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == f"b is blessed in cohort {cohort}: the first good one\n"
    answer = difftool("history", "add", write("c", 840.0))
    drift = "W-DRIFT: total of the blessed run is 11.1 % above the best of the last 3: 1000.0 against 900.0 ms of c\n"
    assert answer.err == f"warning: {drift}"
    shown = difftool("history", "show").out
    assert "  *  b    N/A        8  1000.0      940.0        300.0\n" in shown
    assert shown.endswith(f": the first good one\n  {drift}")
    assert difftool("history", "bless", "c", "--reason", "faster").out == (
        f"c is blessed in cohort {cohort} instead of b: faster\n"
    )
    (found,) = json.loads(difftool("history", "show", "--json").out)["cohorts"]
    assert (found["cohort"], found["blessed"], found["drifts"]) == (cohort, "c", [])
    assert [line["reason"] for line in found["blessings"]] == ["the first good one", "faster"]


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ("show --dir none", "error: none is no folder with a history\nhint: difftool history add DUMP starts one\n"),
        ("bless a", "error: missing option '--reason'\nhint: see difftool history bless --help\n"),
        (
            "bless x --reason y",
            "error: run x is not in the history of perf-history\nhint: difftool history show lists the runs\n",
        ),
        ("add none.json", "error: none.json cannot be read: No such file or directory\n"),
    ],
)
def test_what_does_not_fit_is_exit_2(difftool, cohort, words, printed):
    answer = difftool("history", *words.split())
    assert (answer.code, answer.out, answer.err) == (2, "", printed)


def test_a_comparison_takes_its_floors_from_what_sessions_differ_by(difftool, cohort):
    write("slow", 1010.0)
    assert difftool("compare-perf", "b.json", "slow.json").code == 10
    answer = difftool("compare-perf", "b.json", "slow.json", "--history", "perf-history")
    assert answer.code == 10
    assert f"- base: history: 2 sessions of cohort {cohort}, and 5 give a noise floor\n" in answer.out
    for name, denoising in (("c", 900.0), ("d", 960.0), ("e", 930.0)):
        difftool("history", "add", write(name, denoising))
    # totals 1050, 1000, 960, 1020, 990: around 1000 by 0, 10, 20, 40, 50, so the noise is 3 · 1.4826 · 20 = 89 ms
    answer = difftool("compare-perf", "b.json", "slow.json", "--history", "perf-history", "--json")
    assert (answer.code, json.loads(answer.out)["verdict"]) == (0, "NO_CHANGE")
    total = json.loads(answer.out)["comparisons"][0]["metrics"][0]
    assert (total["name"], total["floor"]) == ("total", pytest.approx(3 * 1.4826 * 20))

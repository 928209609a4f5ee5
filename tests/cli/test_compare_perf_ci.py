"""`difftool compare-perf` in a CI job: gates, thresholds, JUnit, and what GitHub Actions shows."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from report.golden.pairs import BLACK, HALVED, runs, worth


@pytest.fixture
def dumps(difftool):
    """base.json, and dumps of the same work: slow, fast, black; and halved, of other work."""
    contents = {
        "base": runs(940),
        "slow": runs(1040, peak_memory_mb=300.0),
        "fast": runs(840),
        "black": runs(740, **worth("near", passed=False, **BLACK)),
        "halved": runs(470, **HALVED),
        "once": runs(940, (0,)),
    }
    for name, content in contents.items():
        Path(f"{name}.json").write_text(json.dumps(content))


VERDICT = (
    "## Verdict\n"
    "\n"
    "- new: **REGRESSED**, total 1000.0 ms -> 1100.0 ms, ratio 1.100\n"
    "  - REGRESSED: total +10.0 % (95 %: +9.6 % to +10.4 %), p 0.00031, floor 3.0 %\n"
    "  - REGRESSED: denoising +10.6 % (95 %: +10.2 % to +11.1 %), p 0.00031, floor 3.0 %\n"
    "  - NO_CHANGE: decoding, peak_memory\n"
)
SUMMARY = (
    "| metric | base | new | ratio | 95 % | verdict |\n"
    "| --- | --: | --: | --: | --: | --- |\n"
    "| total | 1000.0 ms | 1100.0 ms | 1.100 | 1.096 to 1.104 | REGRESSED |\n"
    "| step | 94.0 ms | 104.0 ms | 1.106 | 1.102 to 1.111 | REGRESSED |\n"
    "| save | 2 ms | 2 ms | 1.000 | - | NO_CHANGE |\n"
    "| load | 900.0 ms | 900.0 ms | 1.000 | - | INCONCLUSIVE (too_few_samples) |\n"
    "| peak_memory | 300.0 MiB | 300.0 MiB | 1.000 | 1.000 to 1.000 | NO_CHANGE |\n"
    "| peak_host_memory | 300.0 MiB | 300.0 MiB | 1.000 | 1.000 to 1.000 | NO_CHANGE |\n"
    "\n"
    "No part of the verdict: step, save, load, peak_host_memory.\n"
)


def test_a_regression_is_told_with_its_size_its_interval_and_its_floor(difftool, dumps):
    answer = difftool("compare-perf", "base.json", "slow.json")
    assert (answer.code, answer.err) == (10, "")
    assert VERDICT in answer.out
    assert SUMMARY in answer.out


def test_a_threshold_moves_the_floor_and_makes_its_metric_count(difftool, dumps):
    assert difftool("compare-perf", "base.json", "slow.json", "--threshold", "total=15%").code == 10  # by denoising
    both = ("--threshold", "total=15%", "--threshold", "denoising=20%,1ms")
    answer = difftool("compare-perf", "base.json", "slow.json", *both)
    assert (answer.code, "# NO_CHANGE" in answer.out) == (0, True)
    answer = difftool("compare-perf", "base.json", "slow.json", *both, "--threshold", "step=3%")
    assert (answer.code, "REGRESSED: step +10.6 %" in answer.out) == (10, True)


@pytest.mark.parametrize(
    ("flags", "printed"),
    [
        (
            "--threshold total",
            "error: --threshold total: is not METRIC=AMOUNT, such as total=3% or total=3%,50ms\n"
            "hint: for example --threshold total=3%,50ms\n",
        ),
        (
            "--threshold encoding=3%",
            "error: --threshold encoding: no dump has this metric\n"
            "hint: one of denoising, decoding, step, save, total, peak_memory, peak_host_memory, load\n",
        ),
        ("--github", "error: --github: GITHUB_STEP_SUMMARY is not set\nhint: it is for a step of GitHub Actions\n"),
    ],
)
def test_what_would_do_nothing_is_refused(difftool, dumps, monkeypatch, flags, printed):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    answer = difftool("compare-perf", "base.json", "slow.json", *flags.split())
    assert (answer.code, answer.out, answer.err) == (2, "", printed)


def test_junit_has_a_case_for_every_metric_that_counts(difftool, dumps):
    difftool("compare-perf", "base.json", "slow.json", "black.json", "halved.json", "once.json", "-o", "r.xml")
    suites = ET.parse("r.xml").getroot()
    found = {suite.get("name"): {case.get("name"): [child.tag for child in case] for case in suite} for suite in suites}
    assert found == {
        "base.json -> slow.json": {"total": ["failure"], "denoising": ["failure"], "decoding": [], "peak_memory": []},
        "base.json -> black.json": {
            "total": [],
            "denoising": [],
            "decoding": [],
            "peak_memory": [],
            "quality": ["failure"],
        },
        "base.json -> halved.json": {"workload": ["error"]},
        "base.json -> once.json": dict.fromkeys(("total", "denoising", "decoding", "peak_memory"), ["skipped"]),
    }
    assert [suite.attrib["failures"] for suite in suites] == ["2", "1", "0", "0"]
    assert "REGRESSED: +10.0 % (95 %: +9.6 % to +10.4 %), p 0.00031" in Path("r.xml").read_text()


def test_junit_holds_any_text(difftool, dumps):
    name = "a<b>&\x1b[1m.json"
    Path(name).write_text(Path("base.json").read_text())
    difftool("compare-perf", "base.json", name, "-o", "r.xml")
    assert ET.parse("r.xml").getroot()[0].get("name") == "base.json -> a<b>& [1m.json"


def test_github_gets_a_summary_annotations_and_a_comment_that_can_be_found_again(difftool, dumps, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    Path("summary.md").write_text("before\n")
    answer = difftool("compare-perf", "base.json", "slow.json", "fast.json", "once.json", "--github", "--json")
    assert answer.code == 10
    cohort = json.loads(answer.out)["cohort"]
    markdown = difftool("compare-perf", "base.json", "slow.json", "fast.json", "once.json").out
    assert Path("summary.md").read_text() == f"before\n{markdown}"
    assert Path("comment.md").read_text() == f"<!-- difftool:{cohort} -->\n{markdown}"
    assert [line.split("::")[1] for line in answer.err.splitlines()] == [
        "error title=difftool%3A REGRESSED",
        "notice title=difftool%3A IMPROVED",
        "warning title=difftool%3A INCONCLUSIVE",
    ]
    assert "::total +10.0 %25 (95 %25: +9.6 %25 to +10.4 %25), p 0.00031, floor 3.0 %25; denoising" in answer.err


def test_quality_is_told_before_speed(difftool, dumps):
    answer = difftool("compare-perf", "base.json", "black.json")
    assert answer.code == 11
    assert (
        "- new: **QUALITY_FAILED**, total 1000.0 ms -> 800.0 ms, ratio 0.800\n"
        "  - quality: near **failed**, against without cache: output 0 of item 0 is not good enough\n"
        "  - IMPROVED: total -20.0 %"
    ) in answer.out
    answer = difftool("compare-perf", "base.json", "slow.json", "--quality", "near")
    assert answer.code == 10
    assert "  - quality: near cannot be said: the dump says nothing of quality: set quality.reference" in answer.out


def test_the_recipes_of_the_runs_are_what_would_be_raced(difftool, dumps):
    for name in ("x", "y"):
        Path(f"runs {name}").mkdir()
        Path(f"runs {name}/perf.json").write_text(Path("once.json").read_text())
        Path(f"runs {name}/recipe.yaml").write_text("model: x\n")
    answer = difftool("compare-perf", "runs x/perf.json", "runs y/perf.json")
    line = "difftool bench 'runs x/recipe.yaml' --arm new='runs y/recipe.yaml' --repeats 8"
    assert f"  - to decide: {line}\n" in answer.out

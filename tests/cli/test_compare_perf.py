"""`difftool compare-perf`, whole: what it prints, what it writes, and what it exits with."""

import json
from pathlib import Path
from typing import Any

import pytest
from report.dumps import SAMPLE, dump

from difftool.cli.compare_perf import exit_code
from difftool.report.perf import write_perf
from difftool.report.verdict import Verdict

ENV = {"packages": {"torch": "2.13.0"}, "device": {"kind": "cpu", "name": "EPYC"}, "fingerprint": "f"}


def recipe(sha: str = "w", **changes: Any) -> dict[str, Any]:
    resolved = {
        "model": {"path": "builtin:shapes-image"},
        "stages": {"denoising": {"precision": "fp32"}},
        "sampling": {"prompt": "a red circle", "num_inference_steps": 2},
        **changes,
    }
    return {"name": "red", "sha256": sha, "workload_sha256": sha, "resolved": resolved, "provenance": {}}


def write(name: str, **changes: Any) -> None:
    write_perf(Path(name), dump(**{"recipe": recipe(), "env": ENV, **changes}))


def slow_sample() -> dict[str, Any]:
    """Denoising twice as slow, by its second step; a third more memory, half of it in decoding."""
    steps = [{"step": i, "duration_ms": ms, "kind": "compute"} for i, ms in enumerate([50.0, 150.0])]
    points = {"after_decoding": {"host_mb": 350.0, "peak_host_mb": 400.0}}
    return {
        **SAMPLE,
        "total_ms": 230.0,
        "stages_ms": {"denoising": 200.0, "decoding": 30.0},
        "denoise_steps_ms": steps,
        "memory_checkpoints": points,
        "peak_memory_mb": 400.0,
        "peak_host_memory_mb": 400.0,
    }


REPORT = (
    "# INCONCLUSIVE: base.json -> new.json\n"
    "\n"
    "|  | file | model | device | devices | items | runs | outputs/s | commit | tag | time |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    "| base | base.json | builtin:shapes-image | cpu EPYC | 1 | 1 | 1 | 7.7 | N/A | - | "
    "2026-11-21T12:00:00.000+00:00 |\n"
    "| new | new.json | builtin:shapes-image | cpu EPYC | 1 | 1 | 1 | 7.7 | N/A | - | "
    "2026-11-21T12:00:00.000+00:00 |\n"
    "\n"
    "- new: W-ACCOUNTING: item 0, repeat 0: stages and total differ by 3.0 %\n"
    "\n"
    "## Verdict\n"
    "\n"
    "- new: **INCONCLUSIVE**, total 130.0 ms -> 230.0 ms, ratio 1.769\n"
    "  - too_few_samples: 1 against 1 run; 5 more repeats of each (total, denoising, decoding, peak_memory)\n"
    "  - to decide: difftool bench BASE.yaml --arm new=NEW.yaml --repeats 8 "
    "(difftool inspect base.json --recipe prints a recipe)\n"
    "\n"
    "## What differs: base -> new\n"
    "\n"
    "- workload: the same (w)\n"
    "- device: the same (cpu EPYC)\n"
    "- device_count: the same (1)\n"
    "- treatment:\n"
    "  - stages.denoising.precision: fp32 -> bf16\n"
    "- environment:\n"
    "  - env.packages.torch: 2.13.0 -> 2.14.0\n"
    "\n"
    "## Summary\n"
    "\n"
    "| metric | base | new | ratio | 95 % | verdict |\n"
    "| --- | --: | --: | --: | --: | --- |\n"
    "| total | 130.0 ms | 230.0 ms | 1.769 | - | INCONCLUSIVE (too_few_samples) |\n"
    "| step | 50.0 ms | 100.0 ms | 2.000 | - | INCONCLUSIVE (too_few_samples) |\n"
    "| save | 2 ms | 2 ms | 1.000 | - | INCONCLUSIVE (too_few_samples) |\n"
    "| load | 900.0 ms | 900.0 ms | 1.000 | - | INCONCLUSIVE (too_few_samples) |\n"
    "| peak_memory | 300.0 MiB | 400.0 MiB | 1.333 | - | INCONCLUSIVE (too_few_samples) |\n"
    "| peak_host_memory | 300.0 MiB | 400.0 MiB | 1.333 | - | INCONCLUSIVE (too_few_samples) |\n"
    "\n"
    "No part of the verdict: step, save, load, peak_host_memory.\n"
    "\n"
    "## Stages\n"
    "\n"
    "| metric | base | new | ratio | 95 % | verdict |\n"
    "| --- | --: | --: | --: | --: | --- |\n"
    "| denoising | 100.0 ms | 200.0 ms | 2.000 | - | INCONCLUSIVE (too_few_samples) |\n"
    "| decoding | 30.0 ms | 30.0 ms | 1.000 | - | INCONCLUSIVE (too_few_samples) |\n"
    "\n"
    "## Steps\n"
    "\n"
    "```\n"
    "base  ▃▃  2 steps, 50.0 to 50.0 ms\n"
    "new   ▃█  2 steps, 50.0 to 150.0 ms\n"
    "```\n"
    "\n"
    "The steps that moved:\n"
    "\n"
    "| step | base ms | new ms | ratio |\n"
    "| --- | --: | --: | --: |\n"
    "| 1 | 50.0 | 150.0 | 3.000 |\n"
    "\n"
    "## Memory\n"
    "\n"
    "| checkpoint | reading | base MiB | new MiB | ratio |\n"
    "| --- | --- | --: | --: | --: |\n"
    "| after_decoding | peak_host | - | 400.0 | - |\n"
)


def test_a_report_is_the_verdict_what_differs_and_the_numbers(difftool):
    write("base.json")
    write(
        "new.json",
        recipe=recipe(stages={"denoising": {"precision": "bf16"}}),
        env={**ENV, "packages": {"torch": "2.14.0"}},
        samples=[slow_sample()],
        warnings=[{"code": "W-ACCOUNTING", "message": "item 0, repeat 0: stages and total differ by 3.0 %"}],
    )
    answer = difftool("compare-perf", "base.json", "new.json")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == REPORT


OTHER_MODEL = (
    "# INCOMPARABLE: base.json -> new.json\n"
    "\n"
    "|  | file | model | device | devices | items | runs | outputs/s | commit | tag | time |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    "| base | base.json | builtin:shapes-image | cpu EPYC | 1 | 1 | 1 | 7.7 | N/A | - | "
    "2026-11-21T12:00:00.000+00:00 |\n"
    "| new | new.json | me/other | cpu EPYC | 1 | 1 | 1 | 7.7 | N/A | - | 2026-11-21T12:00:00.000+00:00 |\n"
    "\n"
    "## Verdict\n"
    "\n"
    "- new: **INCOMPARABLE**\n"
    "  - workload differs; to look at the numbers all the same: --allow-mismatch workload\n"
    "\n"
    "## What differs: base -> new\n"
    "\n"
    "- workload: **different**\n"
    "  - model.path: builtin:shapes-image -> me/other\n"
    "- device: the same (cpu EPYC)\n"
    "- device_count: the same (1)\n"
    "- treatment: nothing differs\n"
    "- environment: nothing differs\n"
)


def test_two_workloads_are_exit_12_and_named(difftool):
    write("base.json")
    write("new.json", recipe=recipe("v", model={"path": "me/other"}), meta={"model": "me/other", "prompt": "x"})
    answer = difftool("compare-perf", "base.json", "new.json")
    assert (answer.code, answer.err) == (12, "")
    assert answer.out == OTHER_MODEL


THREE = (
    "# INCONCLUSIVE: base.json -> a.json, b.json\n"
    "\n"
    "|  | file | model | device | devices | items | runs | outputs/s | commit | tag | time |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    "| base | base.json | builtin:shapes-image | cpu EPYC | 1 | 1 | 1 | 7.7 | N/A | - | "
    "2026-11-21T12:00:00.000+00:00 |\n"
    "| new 1 | a.json | builtin:shapes-image | cpu EPYC | 1 | 1 | 1 | 7.7 | N/A | - | "
    "2026-11-21T12:00:00.000+00:00 |\n"
    "| new 2 | b.json | builtin:shapes-image | cpu EPYC | 1 | 1 | 1 | 7.7 | N/A | - | "
    "2026-11-21T12:00:00.000+00:00 |\n"
    "\n"
    "## Verdict\n"
    "\n"
    "- new 1: **INCONCLUSIVE**, total 130.0 ms -> 130.0 ms, ratio 1.000\n"
    "  - too_few_samples: 1 against 1 run; 5 more repeats of each (total, denoising, decoding, peak_memory)\n"
    "  - to decide: difftool bench BASE.yaml --arm new=NEW.yaml --repeats 8 "
    "(difftool inspect base.json --recipe prints a recipe)\n"
    "- new 2: **INCONCLUSIVE**, total 130.0 ms -> 230.0 ms, ratio 1.769\n"
    "  - too_few_samples: 1 against 1 run; 5 more repeats of each (total, denoising, decoding, peak_memory)\n"
    "  - to decide: difftool bench BASE.yaml --arm new=NEW.yaml --repeats 8 "
    "(difftool inspect base.json --recipe prints a recipe)\n"
    "\n"
    "## What differs: base -> new 1\n"
    "\n"
    "- workload: the same (w)\n"
    "- device: the same (cpu EPYC)\n"
    "- device_count: the same (1)\n"
    "- treatment: nothing differs\n"
    "- environment: nothing differs\n"
    "\n"
    "## What differs: base -> new 2\n"
    "\n"
    "- workload: the same (w)\n"
    "- device: the same (cpu EPYC)\n"
    "- device_count: the same (1)\n"
    "- treatment: nothing differs\n"
    "- environment: nothing differs\n"
    "\n"
    "## Summary\n"
    "\n"
    "| metric | base | new 1 | ratio | 95 % | verdict | new 2 | ratio | 95 % | verdict |\n"
    "| --- | --: | --: | --: | --: | --- | --: | --: | --: | --- |\n"
    "| total | 130.0 ms | 130.0 ms | 1.000 | - | INCONCLUSIVE (too_few_samples) | 230.0 ms | 1.769 | - | "
    "INCONCLUSIVE (too_few_samples) |\n"
    "| step | 50.0 ms | 50.0 ms | 1.000 | - | INCONCLUSIVE (too_few_samples) | 100.0 ms | 2.000 | - | "
    "INCONCLUSIVE (too_few_samples) |\n"
    "| save | 2 ms | 2 ms | 1.000 | - | INCONCLUSIVE (too_few_samples) | 2 ms | 1.000 | - | INCONCLUSIVE "
    "(too_few_samples) |\n"
    "| load | 900.0 ms | 900.0 ms | 1.000 | - | INCONCLUSIVE (too_few_samples) | 900.0 ms | 1.000 | - | "
    "INCONCLUSIVE (too_few_samples) |\n"
    "| peak_memory | 300.0 MiB | 300.0 MiB | 1.000 | - | INCONCLUSIVE (too_few_samples) | 400.0 MiB | 1.333 | "
    "- | INCONCLUSIVE (too_few_samples) |\n"
    "| peak_host_memory | 300.0 MiB | 300.0 MiB | 1.000 | - | INCONCLUSIVE (too_few_samples) | 400.0 MiB | "
    "1.333 | - | INCONCLUSIVE (too_few_samples) |\n"
    "\n"
    "No part of the verdict: step, save, load, peak_host_memory.\n"
    "\n"
    "## Stages\n"
    "\n"
    "| metric | base | new 1 | ratio | 95 % | verdict | new 2 | ratio | 95 % | verdict |\n"
    "| --- | --: | --: | --: | --: | --- | --: | --: | --: | --- |\n"
    "| denoising | 100.0 ms | 100.0 ms | 1.000 | - | INCONCLUSIVE (too_few_samples) | 200.0 ms | 2.000 | - | "
    "INCONCLUSIVE (too_few_samples) |\n"
    "| decoding | 30.0 ms | 30.0 ms | 1.000 | - | INCONCLUSIVE (too_few_samples) | 30.0 ms | 1.000 | - | "
    "INCONCLUSIVE (too_few_samples) |\n"
    "\n"
    "## Steps\n"
    "\n"
    "```\n"
    "base   ▃▃  2 steps, 50.0 to 50.0 ms\n"
    "new 1  ▃▃  2 steps, 50.0 to 50.0 ms\n"
    "new 2  ▃█  2 steps, 50.0 to 150.0 ms\n"
    "```\n"
    "\n"
    "The steps that moved:\n"
    "\n"
    "| step | base ms | new 1 ms | ratio | new 2 ms | ratio |\n"
    "| --- | --: | --: | --: | --: | --: |\n"
    "| 1 | 50.0 | 50.0 | 1.000 | 150.0 | 3.000 |\n"
    "\n"
    "## Memory\n"
    "\n"
    "| checkpoint | reading | base MiB | new 1 MiB | ratio | new 2 MiB | ratio |\n"
    "| --- | --- | --: | --: | --: | --: | --: |\n"
    "| after_decoding | peak_host | - | - | - | 400.0 | - |\n"
)


def test_three_dumps_are_columns_against_the_first(difftool):
    write("base.json")
    write("a.json")
    write("b.json", samples=[slow_sample()])
    write("c.json", recipe=recipe("v", model={"path": "me/other"}))
    answer = difftool("compare-perf", "base.json", "a.json", "b.json")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == THREE
    assert difftool("compare-perf", "base.json", "a.json", "c.json", "b.json").code == 12


@pytest.mark.parametrize(
    ("flags", "same", "other"),
    [([], 0, 12), (["--gate"], 12, 12), (["--report-only"], 0, 0), (["--allow-mismatch", "workload"], 0, 0)],
)
def test_exit_codes(difftool, flags, same, other):
    write("base.json")
    write("new.json")
    write("other.json", recipe=recipe("v"))
    assert difftool("compare-perf", "base.json", "new.json", *flags).code == same
    assert difftool("compare-perf", *flags, "base.json", "other.json").code == other


def test_every_verdict_has_its_exit_code():
    codes = {verdict.value: (exit_code(verdict, gate=False), exit_code(verdict, gate=True)) for verdict in Verdict}
    assert codes == {
        "NO_CHANGE": (0, 0),
        "IMPROVED": (0, 0),
        "INCONCLUSIVE": (0, 12),
        "REGRESSED": (10, 10),
        "QUALITY_FAILED": (11, 11),
        "INCOMPARABLE": (12, 12),
    }


def test_json_and_files_hold_the_same_report(difftool):
    write("base.json")
    write("new.json")
    markdown = difftool("compare-perf", "base.json", "new.json").out
    answer = difftool("compare-perf", "base.json", "new.json", "--json", "-o", "r.md", "-o", "r.json")
    assert json.loads(answer.out)["verdict"] == "INCONCLUSIVE"
    assert Path("r.json").read_text() == answer.out
    assert Path("r.md").read_text() == markdown


def test_no_dump_gets_a_mark_of_approval(difftool):
    write("base.json", samples=[slow_sample()])
    write("new.json")
    printed = difftool("compare-perf", "base.json", "new.json").out
    assert not set(printed) & set("✅✓✔🟢⚪❌🔴")


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ("base.json", "error: missing argument 'NEW'\nhint: see difftool compare-perf --help\n"),
        (
            "base.json new.json -o r.html",
            "error: -o r.html: not available yet\nhint: a report is .md, .json or .xml\n",
        ),
        (
            "base.json new.json --allow-mismatch devise",
            "error: --allow-mismatch devise: no such condition\nhint: one of workload, device, device_count\n",
        ),
        (
            "base.json new.json --gate --report-only",
            "error: --gate and --report-only exclude each other\nhint: --report-only is exit 0 for any verdict\n",
        ),
        ("base.json none.json", "error: none.json cannot be read: No such file or directory\n"),
        ("base.json cut.json --report-only", "error: cut.json is not JSON: it ends too early, in line 3\n"),
        (
            "failed.json base.json --report-only",
            "error: failed.json is of a run that failed in denoising: OutOfMemoryError: too big\n"
            "hint: compare finished runs only\n",
        ),
        (
            "nan.json base.json",
            "error: nan.json is no valid perf dump: memory_checkpoints.after_decoding.host_mb is nan\n",
        ),
    ],
)
def test_what_cannot_be_compared_is_exit_2_and_leaves_stdout_empty(difftool, words, printed):
    write("base.json")
    write("new.json")
    error = {"kind": "OutOfMemoryError", "message": "too big", "stage": "denoising", "item": 0}
    write("failed.json", status="failed", samples=[], error=error)
    text = Path("base.json").read_text()
    Path("cut.json").write_text("\n".join(text.splitlines()[:3])[:-2])
    broken = {**json.loads(text), "memory_checkpoints": {"after_decoding": {"host_mb": float("nan")}}}
    Path("nan.json").write_text(json.dumps(broken))
    answer = difftool("compare-perf", *words.split())
    assert (answer.code, answer.out, answer.err) == (2, "", printed)


def test_a_report_that_cannot_be_written_is_exit_9(difftool):
    write("base.json")
    answer = difftool("compare-perf", "base.json", "base.json", "-o", "none/r.md")
    assert answer.code == 9
    assert answer.err == "error: cannot write none/r.md: No such file or directory\nhint: check the path\n"

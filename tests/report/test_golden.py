"""Every golden pair has its fixed verdict, effect, p and exit code; without the guard that it is for, it has not."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from report.golden.pairs import PAIRS, Golden, as_text

from difftool.report.compare import ADVISORY
from difftool.report.floors import Floor
from difftool.report.measured import Series

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path) -> Run:
    """Compares the two dumps of a pair by the command line, in an empty folder."""
    from difftool.cli.main import main

    monkeypatch.chdir(tmp_path)

    def compare(pair: Golden, *flags: str) -> tuple[int, str, str]:
        Path("base.json").write_text(as_text(pair.base))
        Path("new.json").write_text(as_text(pair.new))
        code = main(["compare-perf", "base.json", "new.json", *pair.flags, *flags])
        return code, *capsys.readouterr()

    return compare


def mismatches(pair: Golden, run: Run) -> list[str]:
    """What differs from the expected answer; empty where nothing does."""
    code, out, err = run(pair)
    gate = run(pair, "--gate")[0]
    found = [f"exit {code}, {gate} with --gate"] if (code, gate) != (pair.code, pair.gate) else []
    found += [f"does not say {pair.said!r}: {err}{out}"] if pair.said not in err + out else []
    if pair.verdict is None:
        return found + ([f"prints {out}"] if out else [])
    report = json.loads(run(pair, "--json")[1] or "{}")
    if report.get("verdict") != pair.verdict:
        found.append(f"verdict {report.get('verdict')}")
    return found + _numbers(pair, report)


def _numbers(pair: Golden, report: dict[str, Any]) -> list[str]:
    metrics = report["comparisons"][0]["metrics"] if report else []
    metric = next((entry for entry in metrics if entry["name"] == pair.metric), None)
    if pair.effect is None:
        return ["has metrics"] if metric else []
    effect, p = (100 * (metric["ratio"] - 1), metric["p"]) if metric else (None, None)
    found = [f"effect {effect}"] if effect is None or effect != pytest.approx(pair.effect, abs=1e-6) else []
    return found + ([f"p {p}"] if pair.p is not None and p != pytest.approx(pair.p, rel=1e-9) else [])


@pytest.mark.parametrize("name", PAIRS)
def test_a_golden_pair_has_its_fixed_answer(name, run):
    assert mismatches(PAIRS[name], run) == []


def every_reading(dump: Any) -> dict[str, Series]:
    from difftool.report.summary import readings

    return {name: Series(tuple(found), tuple(found)) for name, found in readings(dump.samples).items()}


# what is put in the place of a guard to remove it -> the pairs that it is for
GUARDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "enough runs": ({"judge.can_decide": lambda *_: True}, ("single runs", "8 against 2 runs", "plus 3 % at n=3")),
    "the floor": ({"compare.default_floor": lambda _: Floor(0, 0)}, ("plus 1 %, below the floor",)),
    "the rank test": ({"judge.ALPHA": 2.0}, ("chance could have done it",)),
    "Holm's correction": ({"judge.holm": list}, ("chance could have done it",)),
    "the interval": ({"judge.ratio_interval": lambda *_: (1.0, 1.0)}, ("too noisy to say",)),
    "medians": ({"judge.statistics.median": fmean}, ("one spiked sample",)),
    "runs, not items": ({"measured._series": every_reading}, ("many items are not many runs",)),
    "the same work": ({"comparable.CHECKS": {}}, ("25 against 50 steps", "another model")),
    "quality": ({"compare._worth": lambda _: []}, ("faster but black", "faster but PSNR 20")),
    "a pass is checked": (
        {"compare.judge_quality": lambda *_: (True, [])},
        ("faster but black, and nobody said so", "faster but PSNR 20, asked here"),
    ),
    "throttling": ({"measured.DISTURBANCES": ()}, ("throttled",)),
    "memory counts": ({"compare.ADVISORY": (*ADVISORY, "peak_memory")}, ("doubled memory",)),
    "more than the median step": ({"compare.ADVISORY": (*ADVISORY, "total", "denoising")}, ("one step spiked",)),
    "finite numbers": ({"measured._broken_value": lambda *_: None}, ("NaN",)),
}


@pytest.mark.parametrize(("guard", "name"), [(guard, name) for guard, (_, names) in GUARDS.items() for name in names])
def test_without_its_guard_a_golden_pair_turns_red(guard, name, run, monkeypatch):
    for place, instead in GUARDS[guard][0].items():
        monkeypatch.setattr(f"difftool.report.{place}", instead)
    assert mismatches(PAIRS[name], run) != []

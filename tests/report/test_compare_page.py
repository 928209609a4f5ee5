"""docs/compare-perf.md works: its commands run in the order shown, and its report, floors and codes are the code's."""

import json
import re
import shlex
from pathlib import Path

import pytest
from report.golden.pairs import runs

from difftool.cli.compare_perf import exit_code
from difftool.cli.main import main
from difftool.report.floors import FLOORS, STAGE
from difftool.report.verdict import Verdict

PAGE = (Path(__file__).parents[2] / "docs/compare-perf.md").read_text()
SHOWN = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)
    for line in block.splitlines()
]


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A folder with the dumps that the page names."""
    monkeypatch.chdir(tmp_path)
    for name, denoising in (("base", 940.0), ("new", 1040.0), ("perf", 950.0)):
        Path(f"{name}.json").write_text(json.dumps({**runs(denoising), "request_id": name}))


def test_the_shown_commands_run_and_the_shown_report_is_theirs(page, capsys):
    assert len(SHOWN) == 6
    (report,) = re.findall(r"^```text\n(.*?)^```", PAGE, re.M | re.S)
    for line in SHOWN:
        program, *words = shlex.split(line)
        compares = words[0] == "compare-perf"
        assert (program, main(words)) == ("difftool", 10 if compares else 0)
        assert report in capsys.readouterr().out or not compares


def test_every_warning_that_the_code_has_is_on_the_page():
    sources = sorted((Path(__file__).parents[2] / "difftool").rglob("*.py"))
    known = {code for source in sources for code in re.findall(r"\bW(?:-[A-Z]+)+\b", source.read_text())}
    assert {code for code, _ in rows("code")} == known


def rows(head):
    """The cells of the table with this head."""
    lines = PAGE.partition(f"| {head} |")[2].splitlines()[2:]
    found = []
    for line in lines:
        if not line.strip().startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    return found


def test_the_shown_floors_are_the_default_ones():
    found = {name: (float(share.split()[0]) / 100, float(amount.split()[0])) for name, share, amount in rows("metric")}
    expected = {name: (floor.relative, floor.absolute) for name, floor in FLOORS.items()}
    assert found == {**expected, "other stages": (STAGE.relative, STAGE.absolute)}


def test_the_shown_exit_codes_are_those_of_the_command():
    found = {}
    for names, *codes in rows("verdict"):
        for name in re.sub(r"\(.*\)", "", names).split(","):
            found[name.strip()] = tuple(int(code) for code in codes)
    assert found == {v.value: (exit_code(v, gate=False), exit_code(v, gate=True), 0) for v in Verdict}

"""What is kept of earlier sessions, and what it says of later ones."""

import json
from pathlib import Path

import pytest
from report.golden.pairs import ENV, RECIPE, other, runs

from difftool.report.comparable import cohort_of
from difftool.report.history import Cohort, HistoryError, Session, add, bless, drifts, noise, read_cohort, read_history
from difftool.report.measured import read_measured


@pytest.fixture
def measured(tmp_path):
    """A dump of eight runs, as a comparison reads it."""

    def make(name="a", denoising=940.0, **changes):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**runs(denoising, **changes), "request_id": name}))
        return read_measured(path)

    return make


def session(name, total, peak_memory=300.0):
    medians = {"total": total, "peak_memory": peak_memory}
    facts = {"timestamp": "t", "commit_hash": "N/A", "tag": None, "model": "m", "device": "d", "device_count": 1}
    return Session(request_id=name, runs=8, medians=medians, **facts)


def test_a_cohort_is_the_recipe_the_hardware_and_the_software(measured):
    same = [measured("a"), measured("b", 970.0), measured("c", tag="x", commit_hash="f00")]
    assert len({cohort_of(dump) for dump in same}) == 1
    others = [
        measured("d", **other("v")),
        measured("e", **other("w", stages={"denoising": {"precision": "bf16"}})),
        measured("f", env={**ENV, "device": {"kind": "cuda", "name": "NVIDIA H200"}}),
        measured("g", env={**ENV, "fingerprint": {"hardware": "h", "software": "t"}}),
        measured("h", run={"id": "h", "difftool": "0.1.0", "world_size": 2}),
    ]
    assert len({cohort_of(dump) for dump in [same[0], *others]}) == 6
    renamed = measured("i", **other("w", **{**RECIPE, "name": "y", "output": {"dir": "z"}}))
    assert cohort_of(renamed) == cohort_of(same[0])


def test_sessions_are_appended_by_cohort_and_read_back(tmp_path, measured):
    folder = tmp_path / "history"
    first = add(folder, measured("a"))
    (file,) = folder.iterdir()
    before = file.read_bytes()
    second = add(folder, measured("b", 970.0))
    assert file.read_bytes().startswith(before)
    assert (first.name, file.name) == (second.name, f"{second.name}.jsonl")
    assert [(s.request_id, s.runs, s.medians["total"]) for s in second.sessions] == [("a", 8, 1000.0), ("b", 8, 1030.0)]
    add(folder, measured("c", **other("v")))
    assert {cohort.name: len(cohort.sessions) for cohort in read_history(folder)}[second.name] == 2
    assert len(read_history(folder)) == 2


def test_a_run_is_added_once(tmp_path, measured):
    add(tmp_path / "history", measured("a"))
    with pytest.raises(HistoryError, match="is in the history already: run a of cohort"):
        add(tmp_path / "history", measured("a"))


def test_a_blessing_is_a_line_with_its_reason_and_what_it_replaces(tmp_path, measured):
    folder = tmp_path / "history"
    add(folder, measured("a"))
    add(folder, measured("b"))
    bless(folder, "a", reason="the first", timestamp="t1")
    cohort, blessing = bless(folder, "b", reason="new kernels", timestamp="t2")
    assert (blessing.replaces, cohort.blessed.request_id) == ("a", "b")
    assert [line.reason for line in cohort.blessings] == ["the first", "new kernels"]
    with pytest.raises(HistoryError, match="run c is not in the history"):
        bless(folder, "c", reason="x", timestamp="t")


def test_noise_is_three_deviations_of_five_sessions_or_more():
    four = Cohort("c", tuple(session(str(i), 1000.0 + i) for i in range(4)))
    assert noise(four) == {}
    # medians 1000 to 1004: their median absolute deviation is 1, a deviation 1.4826
    five = Cohort("c", tuple(session(str(i), 1000.0 + i) for i in range(5)))
    assert noise(five) == pytest.approx({"total": 3 * 1.4826, "peak_memory": 0.0})
    older = tuple(session(f"x{i}", 9000.0 * (i + 1)) for i in range(30))  # the most of them
    recent = tuple(session(str(i), 1000.0) for i in range(20))
    assert noise(Cohort("c", older + recent))["total"] == 0.0


def test_a_blessed_session_more_than_5_per_cent_above_the_best_of_the_last_20_is_an_alarm(tmp_path, measured):
    folder = tmp_path / "history"
    for name, denoising in (("a", 990.0), ("b", 940.0)):
        add(folder, measured(name, denoising))
    # 1050 against 1000 is 5 %, which is not more than 5 %
    assert drifts(bless(folder, "a", reason="x", timestamp="t")[0]) == []
    cohort = add(folder, measured("c", 938.0))
    assert drifts(cohort) == [
        "total of the blessed run is 5.2 % above the best of the last 3: 1050.0 against 998.0 ms of c"
    ]
    later = tuple(session(str(i), 1050.0) for i in range(20))
    assert drifts(Cohort("x", cohort.sessions + later, cohort.blessings)) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1, is no line of a history"),
        ('{"kind": "session"}\n', "line 1, is no line of a history: Field required"),
    ],
)
def test_a_broken_line_is_named(tmp_path, text, said):
    (tmp_path / "c.jsonl").write_text(text)
    with pytest.raises(HistoryError, match=said):
        read_cohort(tmp_path, "c")


def test_a_file_that_nothing_was_written_to_is_no_cohort_yet(tmp_path):
    (tmp_path / "c.jsonl").write_text("")
    assert read_history(tmp_path) == []
    assert read_cohort(tmp_path, "c") == Cohort("c")


def test_a_missing_folder_is_refused():
    with pytest.raises(HistoryError, match="none is no folder with a history"):
        read_history(Path("none"))

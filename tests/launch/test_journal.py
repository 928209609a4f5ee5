"""The journal and the files on the disk say what a run still has to make, whatever ended it."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from launch.conftest import STANDIN

from difftool import launch
from difftool.errors import DifftoolError, ItemsFailed, OutputError, RecipeError, WorkerCrashed
from difftool.launch.child import Child
from difftool.launch.events import ItemFinished, Output
from difftool.launch.journal import Journal, workload_hash
from difftool.launch.records import read_todo
from difftool.parallel.world import World
from difftool.worker import plan_files


@pytest.fixture
def whole(workshop):
    """A run of two items that is finished."""
    workshop.run("succeed")
    workshop.events.clear()
    return workshop


def left(workshop, plan):
    """(item, name, replace) of what another start has to make."""
    tasks = launch.take_up(plan, workshop.records).tasks
    return [(number, task.name, task.replace) for number, task in enumerate(tasks) if task.make]


def test_every_finished_item_is_one_line(whole, make_small_plan):
    plan = make_small_plan(whole.folder)
    first, second = whole.journal()
    assert (first["item"], second["item"]) == (0, 1)
    assert first == {
        "item": 0,
        "index": 0,
        "output": 0,
        "id": "red",
        "status": "done",
        "workload": workload_hash(plan, plan.items[0]),
        "outputs": [{"path": "red.png", "sha256": hashlib.sha256(b"a red circle 7").hexdigest(), "size": 14}],
    }


def test_the_line_is_on_the_disk_before_anybody_hears_of_the_item(workshop):
    seen = []

    def hear(event):
        if isinstance(event, ItemFinished):
            seen.append(len(workshop.journal()))

    workshop.events = type("Hearing", (list,), {"append": staticmethod(hear)})()
    workshop.run("succeed")
    assert seen == [1, 2]


def test_a_line_that_a_death_cut_is_cut_away(whole, make_small_plan):
    plan, file = make_small_plan(whole.folder), whole.records / "journal.jsonl"
    lines = file.read_bytes()
    file.write_bytes(lines + b'{"item": 1, "status": "failed", "wor')
    with Journal(whole.records, plan) as journal:
        assert journal.entries[1].status == "done"
        journal.take(Output(item=1, path=str(whole.folder / "blue.png"), sha256="0" * 64, size=1))
        journal.take(ItemFinished(item=1, total_ms=1.0))
    assert file.read_bytes().startswith(lines) and len(whole.journal()) == 3


def test_a_damaged_line_means_that_its_item_is_made_again(whole, make_small_plan):
    file = whole.records / "journal.jsonl"
    file.write_bytes(b"\0\0\0 not a line\n" + file.read_bytes().split(b"\n", 1)[1])
    assert left(whole, make_small_plan(whole.folder)) == [(0, "red.png", False)]


def test_the_last_line_of_an_item_counts(whole, make_small_plan):
    plan, path = make_small_plan(whole.folder), str(whole.folder / "red.png")
    with Journal(whole.records, plan) as journal:
        journal.take(Output(item=0, path=path, sha256="0" * 64, size=14))
        journal.take(ItemFinished(item=0, total_ms=1.0))
    assert left(whole, plan) == [(0, "red.png", True)]


def test_a_repeat_of_an_item_writes_no_second_line(whole, make_small_plan):
    with Journal(whole.records, make_small_plan(whole.folder)) as journal:
        journal.take(Output(item=0, path=str(whole.folder / "red.png"), sha256="0" * 64, size=1))
        for _ in range(3):
            journal.take(ItemFinished(item=0, total_ms=1.0))
    assert len(whole.journal()) == 3


def test_a_start_that_only_repeats_an_item_keeps_the_line_that_names_its_files(whole, make_small_plan):
    plan, lines = make_small_plan(whole.folder), whole.journal()
    with Journal(whole.records, plan) as journal:
        journal.take(ItemFinished(item=0, total_ms=1.0))
    assert whole.journal() == lines and left(whole, plan) == []


def test_a_run_that_is_whole_starts_no_worker(whole):
    result = whole.take_up("bug")
    assert [(media.item, media.path.name) for media in result.media] == [(0, "red.png"), (1, "blue.png")]
    assert [(event.event, event.kept) for event in whole.events] == [("output", True)] * 2


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(b"X" + file.read_bytes()[1:]),
    ],
    ids=["missing", "cut", "changed"],
)
def test_a_file_that_is_missing_or_damaged_is_made_again_under_its_name(whole, harm, make_small_plan):
    before = (whole.folder / "blue.png").read_bytes()
    harm(whole.folder / "blue.png")
    (whole.folder / "extra.png").write_bytes(b"mine")
    assert left(whole, make_small_plan(whole.folder)) == [(1, "blue.png", True)]
    whole.take_up("succeed")
    assert (whole.folder / "blue.png").read_bytes() == before
    assert sorted(path.name for path in whole.folder.glob("*.png")) == ["blue.png", "extra.png", "red.png"]


def test_an_item_of_another_workload_is_made_again(whole, make_small_plan):
    file = whole.records / "journal.jsonl"
    first, second = whole.journal()
    file.write_text("".join(json.dumps(line) + "\n" for line in ({**first, "workload": "0" * 64}, second)))
    assert left(whole, make_small_plan(whole.folder)) == [(0, "red.png", True)]


def test_a_folder_that_was_moved_is_taken_up_where_it_is(whole, make_small_plan, tmp_path):
    moved = whole.folder.rename(tmp_path / "moved")
    whole.records = moved / ".difftool" / whole.records.name
    assert left(whole, make_small_plan(moved)) == []


def test_a_crash_leaves_the_rest_to_make(workshop, make_small_plan):
    with pytest.raises(WorkerCrashed):
        workshop.run("kill")
    assert workshop.journal() == []
    assert [number for number, _, _ in left(workshop, make_small_plan(workshop.folder))] == [0, 1]


def test_an_item_whose_error_ended_the_run_is_in_the_journal_and_made_again(workshop, make_small_plan):
    with pytest.raises(DifftoolError):
        workshop.run("bug")
    (line,) = workshop.journal()
    assert (line["item"], line["status"]) == (0, "failed")
    assert line["error"] == {"kind": "KeyError", "message": "'rope'", "stage": "denoising"}
    assert [number for number, _, _ in left(workshop, make_small_plan(workshop.folder))] == [0, 1]


def test_a_run_that_goes_on_ends_with_the_items_that_failed(workshop, make_small_plan):
    with pytest.raises(ItemsFailed) as caught:
        workshop.run("fail-some", keep_going=True)
    assert caught.value.exit_code == 8
    assert caught.value.message == "1 of 2 items failed\n  | red: KeyError: 'rope'"
    assert [(line["item"], line["status"]) for line in workshop.journal()] == [(0, "failed"), (1, "done")]
    assert workshop.names()[-2:] == ["perf", "finished"]
    assert left(workshop, make_small_plan(workshop.folder)) == [(0, "red.png", False)]


def test_two_starts_of_one_run_exclude_each_other(whole, make_small_plan, monkeypatch):
    monkeypatch.setattr("difftool.launch.journal.LOCK_WAIT_S", 0.0)
    plan = make_small_plan(whole.folder)
    with Journal(whole.records, plan), pytest.raises(RecipeError, match=f"{whole.records.name} is still going on"):
        launch.take_up(plan, whole.records)


def test_a_worker_that_outlives_its_launcher_keeps_the_run_locked(whole, make_small_plan, monkeypatch):
    monkeypatch.setattr("difftool.launch.journal.LOCK_WAIT_S", 0.0)
    plan = make_small_plan(whole.folder)
    command, file = (sys.executable, str(STANDIN), "hang"), whole.records / "plan.json"
    with Journal(whole.records, plan) as journal:
        worker = Child(command, file, log=whole.records / "x.log", environment=os.environ, holds=[journal.descriptor])
    with worker, pytest.raises(RecipeError, match="still going on"):
        launch.take_up(plan, whole.records)
    launch.take_up(plan, whole.records)


def test_a_rank_that_outlives_its_launcher_keeps_the_run_locked(whole, make_small_plan, monkeypatch):
    """Ranks inherit nothing from their launcher: each locks the plan that it makes."""
    monkeypatch.setattr("difftool.launch.journal.LOCK_WAIT_S", 0.0)
    plan, file = make_small_plan(whole.folder), str(whole.records / "plan.json")
    ranks = [plan_files(file, World(rank, 2)) for rank in (0, 1)]
    assert [next(rank) for rank in ranks] == [whole.records / "plan.json"] * 2
    for rank in ranks:
        with pytest.raises(RecipeError, match="still going on"):
            launch.take_up(plan, whole.records)
        rank.close()
    launch.take_up(plan, whole.records)


def test_half_written_files_go_with_their_writer(whole, make_small_plan):
    dead, zombie = (subprocess.Popen([sys.executable, "-c", ""]) for _ in range(2))
    dead.wait()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has waited for it
    pids = (dead.pid, zombie.pid, os.getpid())
    files = [whole.folder / f".red.png.{pid}.difftool-tmp" for pid in pids]
    for file in files:
        file.write_bytes(b"half a picture")
    launch.take_up(make_small_plan(whole.folder), whole.records)
    zombie.wait()
    assert [file.exists() for file in files] == [False, False, True]


def test_the_records_of_an_earlier_start_are_kept(whole, make_small_plan):
    first = (whole.records / "perf.json").read_bytes()
    for number in (1, 2):
        (whole.folder / "red.png").unlink()
        whole.take_up("succeed")
        assert (whole.records / f"perf.{number}.json").exists() and (whole.records / f"worker.{number}.log").exists()
    assert (whole.records / "perf.1.json").read_bytes() == first
    assert read_todo(whole.records).resumed_from == whole.records.name


def test_the_last_run_is_the_newest_with_a_plan(whole):
    folder = whole.records.parent
    (folder / "29991231T000000Z-ffffff").mkdir()  # killed before it was a run
    assert launch.find_run(whole.folder, None) == whole.records
    with pytest.raises(RecipeError, match="there is no run 20200101T000000Z-000000") as caught:
        launch.find_run(whole.folder, "20200101T000000Z-000000")
    assert whole.records.name in caught.value.hint


def test_a_plan_that_does_not_read_is_told(whole):
    (whole.records / "plan.json").write_text("{}")
    with pytest.raises(RecipeError, match="cannot be read: its plan has name: Field required"):
        launch.recorded_plan(whole.records)


def test_other_ways_of_making_the_same_are_the_same_work(whole, make_small_plan):
    recorded = launch.recorded_plan(whole.records)
    launch.check_same_work(make_small_plan(whole.folder, threads=7, device="cuda", tag="x"), recorded, "x")
    other = make_small_plan(whole.folder)
    fewer = other.model_copy(update={"items": other.items[:1]})
    with pytest.raises(RecipeError, match="it makes 1 items, the run 2"):
        launch.check_same_work(fewer, recorded, "x")
    seed = other.items[0].model_copy(update={"seed": 8})
    with pytest.raises(RecipeError, match="item red: sampling.seed is 8, was 7"):
        launch.check_same_work(other.model_copy(update={"items": (seed, other.items[1])}), recorded, "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_journal_that_may_not_be_written_is_an_output_error(whole, make_small_plan):
    (whole.records / "journal.jsonl").chmod(0o400)
    with pytest.raises(OutputError, match=r"cannot write .*journal.jsonl"):
        launch.take_up(make_small_plan(whole.folder), whole.records)

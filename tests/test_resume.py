"""A batch that is killed and resumed leaves the files of one that was not: real worker, real model."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys

import pytest
from tiny import ROOT, difftool

from difftool.report.perf import read_perf

SHAPES = ("ring", "star", "dot", "square", "cross")
PROMPTS = [f"a {color} {shape}" for color in ("red", "blue", "green", "gray") for shape in SHAPES]
RECIPE = {
    "model": "builtin:shapes-image",
    "sampling": {"prompt": PROMPTS, "num_inference_steps": 2, "height": 32, "width": 32},
    "output": {"dir": "out", "name": "{index}"},
}
KILLS = 5


def media(folder):
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir() if path.is_file()}


def records(folder):
    (run,) = (folder / "out" / ".difftool").iterdir()
    return run


def journal(folder):
    return [json.loads(line) for line in (records(folder) / "journal.jsonl").read_text().splitlines()]


def killed(folder, arguments, *, victim, at):
    """Runs and sends SIGKILL to the launcher or the worker at the `at`-th event after loading; the events heard."""
    command = [sys.executable, "-m", "difftool", "generate", "r.json", "--json", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    heard, seen = [], 0
    with subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            heard.append(event)
            if event["event"] == "started":
                worker = event["pid"]
            seen += bool(seen) or event["event"] == "loaded"
            if seen == at:
                with contextlib.suppress(ProcessLookupError):  # a worker may be further than what is heard of it
                    os.kill(process.pid if victim == "launcher" else worker, signal.SIGKILL)
                seen += 1
        process.wait(300)
    return heard


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "r.json").write_text(json.dumps(RECIPE))
    done = difftool("generate", "r.json", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_a_batch_killed_five_times_ends_with_the_bytes_of_one_that_was_not(whole, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(RECIPE))
    chance = random.Random(2026)
    made = 0
    for number in range(KILLS):
        victim = ("launcher", "worker")[number % 2]
        heard = killed(tmp_path, ["--resume"] if number else [], victim=victim, at=chance.randrange(2, 60))
        made += sum(event["event"] == "item_started" for event in heard)
    done = difftool("generate", "r.json", "--resume", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made += sum(json.loads(line)["event"] == "item_started" for line in done.stdout.splitlines())
    assert media(tmp_path) == media(whole)
    assert made <= len(PROMPTS) + KILLS  # at most one item made again for every kill
    assert not list(tmp_path.rglob("*.difftool-tmp"))
    last = {line["item"]: line["status"] for line in journal(tmp_path)}
    assert last == dict.fromkeys(range(len(PROMPTS)), "done")


@pytest.mark.slow
def test_damaged_and_deleted_files_are_made_again_and_others_left_alone(whole):
    before, out = media(whole), whole / "out"
    (out / "3.png").unlink()
    (out / "7.png").write_bytes(before["7.png"][:-10])
    (out / "mine.png").write_bytes(b"not of this run")
    done = difftool("generate", "r.json", "--resume", cwd=whole)
    assert done.returncode == 0, done.stderr
    assert "18 items are there, 2 to make" in done.stderr
    assert done.stdout.split() == [f"out/{i}.png" for i in range(20) if i not in (3, 7)] + ["out/3.png", "out/7.png"]
    assert media(whole) == {**before, "mine.png": b"not of this run"}
    dump = read_perf(records(whole) / "perf.json")
    assert [sample.item for sample in dump.samples] == [3, 7]
    assert (dump.run.resumed_from, dump.run.kept_items) == (records(whole).name, 18)
    (out / "mine.png").unlink()


@pytest.mark.slow
def test_a_finished_file_that_no_line_tells_of_is_taken_and_not_doubled(whole):
    """What a kill between the file's last rename and its line in the journal leaves."""
    before, file = media(whole), records(whole) / "journal.jsonl"
    lines = [line for line in file.read_text().splitlines() if json.loads(line)["item"] != 5]
    file.write_text("".join(f"{line}\n" for line in lines))
    done = difftool("generate", "r.json", "--resume", "--quiet", cwd=whole)
    assert done.returncode == 0, done.stderr
    assert media(whole) == before


@pytest.mark.slow
def test_items_that_fail_do_not_stop_the_others_and_end_with_exit_8(tmp_path):
    prompts = [
        {"prompt": "a red ring", "id": "good"},
        {"prompt": "a red star", "id": "bad", "scheduler": {"config": {"base_shift": "wide"}}},
        {"prompt": "a blue ring", "id": "better"},
    ]
    sampling = {"prompts": prompts, "num_inference_steps": 1, "height": 32, "width": 32}
    recipe = {**RECIPE, "sampling": sampling, "output": {"dir": "out", "name": "{id}"}}
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    done = difftool("generate", "r.json", "--keep-going", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (8, "out/good.png\nout/better.png\n"), done.stderr
    assert "error: 1 of 3 items failed\n  | bad: TypeError: " in done.stderr
    assert "hint: --resume makes them again" in done.stderr
    dump = read_perf(records(tmp_path) / "perf.json")
    assert dump.status == "failed" and [sample.item for sample in dump.samples] == [0, 2]
    assert [(failure.item, failure.kind, failure.stage) for failure in dump.failed_items] == [
        (1, "TypeError", "timestep_preparation")
    ]
    assert dump.samples[1].reused == ["negative_prompt"]
    assert "in prepare_timesteps" in (records(tmp_path) / "worker.log").read_text()
    assert [line["status"] for line in journal(tmp_path)] == ["done", "failed", "done"]

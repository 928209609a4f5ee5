"""`difftool doctor --model`: every damaged checkpoint is told by file and fault, and none of its code runs."""

import json
import shutil

import pytest
from components.damaged import CANARY, DAMAGES, build, shards, vae
from tiny import difftool as run

from difftool.cli import checkpoint as module
from difftool.pipeline.examine import examine

NAMED = {damage.name: damage for damage in DAMAGES}
CODE = [d.name for d in DAMAGES if "pickle" in d.name or d.name in ("component with code of its own", "pipeline.py")]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return build(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def checkpoint(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "model")


@pytest.fixture
def in_process(monkeypatch):
    """The examination without a process of its own, which would import torch each time."""
    monkeypatch.setattr(module, "ask", lambda path, names, environment, own=None: list(examine(path, names, own)))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_file_and_fault_are_named_and_the_exit_code_is_4(difftool, in_process, damage, checkpoint):
    damage.make(checkpoint)
    answer = difftool("doctor", "--model", str(checkpoint))
    told = answer.out + answer.err
    assert answer.code == 4 and damage.file in told
    assert "internal error" not in told and not (checkpoint / CANARY).exists()


@pytest.mark.parametrize("name", CODE)
def test_nothing_of_a_hostile_checkpoint_runs_in_the_real_process(name, checkpoint, tmp_path):
    NAMED[name].make(checkpoint)
    done = run("doctor", "--model", checkpoint, cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert not (checkpoint / CANARY).exists()


def test_numbers_are_read_by_the_real_process(checkpoint, tmp_path):
    NAMED["NaN"].make(checkpoint)
    done = run("doctor", "--model", "model", "--json", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    found = json.loads(done.stdout)
    (fault,) = [component for component in found["components"] if "fault" in component]
    assert fault["name"] == "vae" and f"{vae(checkpoint)} holds NaN or infinity in" in fault["fault"]


def test_the_report_has_a_line_for_each_component(difftool, in_process, checkpoint):
    count = len(shards(checkpoint))
    vae(checkpoint).write_bytes(b"<html>")
    answer = difftool("doctor", "--model", str(checkpoint))
    lines = answer.out.splitlines()
    assert lines[0].endswith(f"{checkpoint}, FluxPipeline: 1 of 7 damaged")
    assert f"  transformer     {count} files, " in answer.out and "  tokenizer       no weights" in answer.out
    assert f"  vae             {vae(checkpoint)} is an HTML page, not the weights" in lines
    assert lines[lines.index(f"  vae             {vae(checkpoint)} is an HTML page, not the weights") + 1] == (
        "                  hint: download the file again"
    )


def test_a_sound_model_is_exit_0(difftool, in_process):
    answer = difftool("doctor", "--model", "builtin:shapes-image")
    assert answer.code == 0 and answer.out.splitlines()[0].endswith("shapes-image, FluxPipeline: sound")


def test_one_file_is_examined_too(difftool, in_process, checkpoint, tmp_path):
    answer = difftool("doctor", "--model", str(vae(checkpoint)))
    assert answer.code == 0 and answer.out.splitlines()[0] == f"{vae(checkpoint)}: sound"
    (tmp_path / "x.ckpt").write_bytes(b"\x80\x02")
    refused = difftool("doctor", "--model", "x.ckpt")
    assert refused.code == 4 and "x.ckpt is a pickle, which can run code when loaded: refused" in refused.out


def test_what_is_not_here_is_named_with_the_way_to_get_it(difftool):
    answer = difftool("doctor", "--model", "org/nothing")
    assert answer.code == 4 and answer.err == (
        "error: org/nothing is not on this machine\nhint: difftool models fetch org/nothing\n"
    )
    unknown = difftool("doctor", "--model", "builtin:nothing")
    assert unknown.code == 2 and "no built-in model is named 'nothing'" in unknown.err


def test_an_examination_that_dies_is_no_verdict(difftool, monkeypatch, checkpoint):
    monkeypatch.setattr(module, "EXAMINER", ("/bin/sh", "-c", "echo out of luck >&2; exit 3"))
    answer = difftool("doctor", "--model", str(checkpoint))
    assert answer.code == 6 and "ended early: out of luck" in answer.err

"""Every failure ends in one place: what is wrong, the way out, and an exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from difftool.cli import later, prepare
from difftool.cli.main import app


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ("generate --hieght=3", "error: unknown flag --hieght\nhint: did you mean --height?\n"),
        ("generate --num_gpus 3", "error: unknown flag --num_gpus\nhint: did you mean --num-gpus?\n"),
        ("generate --torch_dtype bf16", "error: unknown flag --torch_dtype\nhint: did you mean --dit-precision?\n"),
        ("generate --quite", "error: unknown flag --quite\nhint: did you mean --quiet?\n"),
        ("generate --xyzzy", "error: unknown flag --xyzzy\nhint: see difftool generate --help-all\n"),
        (
            "--prompt red",
            "error: unknown flag --prompt\nhint: --prompt goes after the command: difftool generate RECIPE --prompt\n",
        ),
        ("-p x", "error: unknown flag -p\nhint: -p goes after the command: difftool generate RECIPE -p\n"),
        ("-s a=b", "error: unknown flag -s\nhint: -s goes after the command: difftool generate RECIPE -s\n"),
        ("-y", "error: unknown flag -y\nhint: see difftool --help\n"),
        (
            "models --revision main",
            "error: unknown flag --revision\n"
            "hint: --revision goes after the command: difftool models fetch RECIPE --revision\n",
        ),
        ("models -p x", "error: unknown flag -p\nhint: see difftool models --help\n"),
        ("schema --seed 1", "error: unknown flag --seed\nhint: see difftool schema --help\n"),
        ("genrate", "error: no such command 'genrate'. Did you mean 'generate'?\nhint: see difftool --help\n"),
        ("generate a b", "error: got unexpected extra argument(s) (b)\nhint: a prompt goes in -p\n"),
        ("generate x --seed", "error: option '--seed' requires an argument\nhint: see difftool --help\n"),
        (
            "generate",
            "error: RECIPE is missing: a file, a built-in recipe, or a model\nhint: builtin:shapes-image is one\n",
        ),
        (
            "plan x.yaml -c y.yaml",
            "error: RECIPE (x.yaml) and --config (y.yaml) are the same thing; give one\nhint: a prompt goes in -p\n",
        ),
        (
            "generate x -q --json",
            "error: --quiet and --json exclude each other\nhint: --json prints only events already\n",
        ),
    ],
)
def test_a_wrong_command_line_is_exit_2_with_the_way_out(difftool, words, printed):
    answer = difftool(*words.split())
    assert (answer.code, answer.err) == (2, printed)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("serve", "difftool serve"),
        ("serve x.yaml --port 30000", "difftool serve"),
        ("tune --help", "difftool tune"),
        ("generate x --port 30000", "--port"),
        ("generate x --port=30000", "--port"),
        ("--host 0.0.0.0", "--host"),
        ("plan x --cost", "--cost"),
        ("bench x --tier near", "--tier"),
    ],
)
def test_what_comes_later_is_told_so_with_what_there_is_meanwhile(difftool, words, name):
    answer = difftool(*words.split())
    meanwhile = {**later.COMMANDS, **later.FLAGS}[name.removeprefix("difftool ")]
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == f"error: {name}: not available yet\nhint: {meanwhile}\n"


def test_what_comes_later_is_not_there_yet_and_what_there_is_meanwhile_is():
    commands = typer.main.get_command(app).commands
    flags = {flag for command in commands.values() for param in command.params for flag in param.opts}
    assert not later.COMMANDS.keys() & commands.keys() and not later.FLAGS.keys() & flags
    named = " ".join((later.TUNE, later.PREDICTED)).replace(",", "").split()
    assert {word for word in named if word.startswith("--")} <= flags
    assert {named[i + 1] for i, word in enumerate(named) if word == "difftool"} <= commands.keys()


def test_a_command_that_comes_later_is_none_of_a_groups(difftool):
    assert difftool("recipes", "serve").err.startswith("error: no such command 'serve'\n")


def test_all_recipe_problems_come_at_once_in_order(difftool):
    Path("r.yaml").write_text("model: builtin:shapes-image\nsampling:\n  promt: red\n  heigth: 64\n")
    answer = difftool("generate", "r.yaml")
    assert (answer.code, answer.out) == (2, "")
    lines = answer.err.splitlines()
    assert lines[0].startswith("r.yaml:3:3: error: sampling.promt: ")
    assert lines[1].startswith("r.yaml:4:3: error: sampling.heigth: ")
    assert lines[-1] == "2 errors; nothing was launched"
    assert not Path("outputs").exists()


def test_all_wrong_overrides_come_at_once(difftool):
    answer = difftool("plan", "builtin:shapes-image", "-s", "a.b=3", "-s", "seed", "--lora-strength", "1", "-p", "x")
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 4
    assert answer.err.endswith("3 errors; nothing was launched\n")


def test_json_errors_are_events_too(difftool):
    answer = difftool("plan", "builtin:shapes-image", "--json", "-s", "a.b=3")
    event = json.loads(answer.out)
    assert (event["event"], event["kind"], event["exit_code"]) == ("error", "RecipeError", 2)
    assert event["problems"][0]["key"] == "a.b"
    assert "1 error; nothing was launched" in answer.err


def test_an_unforeseen_exception_is_one_line_and_a_file(difftool, monkeypatch, tmp_path):
    def fail(*arguments, **options):
        raise KeyError("rope")

    monkeypatch.setattr(prepare, "plan_for", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    answer = difftool("generate", "builtin:shapes-image")
    (file,) = tmp_path.glob("difftool-*.traceback.txt")
    assert answer.code == 1
    assert answer.err == (
        f"error: internal error: KeyError: 'rope'\nhint: this is a bug; please report it with {file}\n"
    )
    assert "raise KeyError" in file.read_text()


def test_without_a_place_for_the_file_the_traceback_is_printed(difftool, monkeypatch):
    def fail(*arguments, **options):
        raise KeyError("rope")

    monkeypatch.setattr(prepare, "plan_for", fail)
    monkeypatch.setattr("tempfile.tempdir", "/nowhere/at/all")
    answer = difftool("generate", "builtin:shapes-image")
    assert answer.code == 1 and "Traceback (most recent call last):" in answer.err


def test_ctrl_c_while_planning_is_exit_130(difftool, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "plan_for", interrupt)
    assert (difftool("plan", "x").code, difftool("plan", "x").err) == (130, "error: interrupted\n")


def test_a_reader_that_left_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "difftool", "schema", "events"]
    ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, "")

"""Shell completion by the shells' own protocols, and in a real bash."""

import os
import subprocess
import sys

import pytest

from difftool.cli.completion import complete_recipe, join_split_word
from difftool.families.index import all_families
from difftool.planning.checkpoint import builtin_models
from difftool.recipe.lookup import builtin_recipes

BASH_ASKS = {"_DIFFTOOL_COMPLETE": "complete_bash"}
HUB_IDS = [known.hub_id for family in all_families() for known in family.checkpoints]
MODELS = [*(f"builtin:{name}" for name in builtin_models()), *HUB_IDS]


def ask(environment, *, cwd):
    """What `difftool` prints for a shell that asks so."""
    names = ("COMP_WORDS", "COMP_CWORD", "_DIFFTOOL_BEFORE")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-m", "difftool"]
    ran = subprocess.run(command, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, timeout=600)
    assert ran.stderr == ""
    return ran


@pytest.fixture
def bash(tmp_path):
    """Completes the last of the words, as bash has cut them."""

    def complete(*words):
        given = {**BASH_ASKS, "COMP_WORDS": "\n".join(("difftool", *words)), "COMP_CWORD": str(len(words))}
        return ask(given, cwd=tmp_path).stdout.split()

    return complete


@pytest.fixture
def files(tmp_path):
    for name in ("flux1-mine.yaml", "flux.png", "flux.txt", "my recipe.yaml", "a.json", ".hidden.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "flux-runs").mkdir()


def test_commands_complete(bash):
    assert bash("g") == ["generate"]


@pytest.mark.parametrize("before", [("generate",), ("plan", "--config"), ("generate", "--seed", "3", "-c")])
def test_a_recipe_is_a_built_in_one_a_model_or_a_file(bash, files, before):
    assert bash(*before, "") == [*builtin_recipes(), *MODELS, "a.json", "flux-runs/", "flux.png", "flux1-mine.yaml"]


def test_names_and_files_complete_together(bash, files):
    names = [name for name in builtin_recipes() if name.startswith("flux")]
    assert names
    assert bash("generate", "flux") == [*names, "flux-runs/", "flux.png", "flux1-mine.yaml"]


def test_a_hub_id_completes_past_its_slash(bash):
    owner = HUB_IDS[0].partition("/")[0]
    assert bash("generate", owner + "/") == [name for name in HUB_IDS if name.startswith(owner)]


@pytest.mark.parametrize(
    "words",
    [("generate", "my"), ("generate", "./fl"), ("generate", "flux-runs/"), ("inspect", ""), ("compare-perf", "")],
)
def test_where_only_files_match_the_shell_completes_them_itself(bash, files, words):
    assert bash(*words) == []


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("generate", "builtin", ":"), builtin_models()),
        (("generate", "builtin", ":", "shapes-i"), ["shapes-image"]),
        (("models", "show", "builtin", ":", "shapes-i"), ["shapes-image"]),
        (("generate", "-p", '"a red circle"', "-c", "builtin", ":", "shapes-i"), ["shapes-image"]),
        (("plan", "--set", "sampling.seed", "="), []),
        (("plan", "--config", "=", "shapes-i"), ["shapes-image"]),
        (("plan", "shapes-image", "--set", "perf.ta"), ["perf.tag="]),
    ],
)
def test_a_word_that_bash_cuts_is_completed_from_its_last_piece(bash, words, found):
    assert bash(*words) == found


def test_the_names_of_show_are_those_it_takes(bash):
    assert bash("recipes", "show", "") == [*builtin_recipes()]
    assert bash("models", "show", "") == [*MODELS, *(family.name for family in all_families())]


@pytest.mark.parametrize(
    "words", [{}, {"COMP_WORDS": "difftool\ngenerate\n-p\n'a red : cir", "COMP_CWORD": "3"}, {"COMP_WORDS": "difftool"}]
)
def test_a_word_that_is_whole_is_left_alone(words):
    environment = dict(words)
    join_split_word(environment)
    assert environment == words


def test_zsh_is_given_names_and_completes_files_itself(tmp_path, files):
    def zsh(line):
        return ask({"_DIFFTOOL_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line}, cwd=tmp_path).stdout

    assert zsh("difftool generate builtin:shapes-i") == "_arguments '*: :((\"builtin\\\\:shapes-image\"))'\n"
    assert zsh("difftool generate my") == zsh("difftool inspect ") == "_files\n"


def test_fish_is_given_names_and_completes_files_itself(tmp_path, files):
    def fish(action, line):
        given = {"_DIFFTOOL_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": action}
        return ask({**given, "_TYPER_COMPLETE_ARGS": line}, cwd=tmp_path)

    assert fish("is-args", "difftool generate builtin:shapes-i").returncode == 0
    assert fish("get-args", "difftool generate builtin:shapes-i").stdout == "builtin:shapes-image\n"
    assert fish("is-args", "difftool generate my").returncode == 1


def in_bash(script, *, cwd, home):
    """Runs a bash script with `difftool` on its path and a home of its own; its stdout."""
    (home / "bin").mkdir()
    program = home / "bin" / "difftool"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m difftool "$@"\n')
    program.chmod(0o755)
    environment = {"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "HOME": str(home)}
    command = ["bash", "--norc", "-c", script]
    ran = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_script_that_is_printed_completes_in_bash(tmp_path, tmp_path_factory):
    script = (
        'eval "$(difftool --show-completion)"\n'
        "COMP_WORDS=(difftool generate builtin : shapes-i) COMP_CWORD=4; _difftool_completion difftool\n"
        'echo "${COMPREPLY[@]}"\n'
        'COMP_WORDS=(difftool generate "") COMP_CWORD=2; _difftool_completion difftool\n'
        'echo "${COMPREPLY[0]}"\n'
        "complete -p difftool\n"
    )
    assert in_bash(script, cwd=tmp_path, home=tmp_path_factory.mktemp("home")).splitlines() == [
        "shapes-image",
        next(iter(builtin_recipes())),
        "complete -o default -F _difftool_completion difftool",
    ]


def test_completion_installs_itself_once(tmp_path, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    said = in_bash("difftool --install-completion && difftool --install-completion && true", cwd=tmp_path, home=home)
    script = home / ".bash_completions" / "difftool.sh"
    assert said.splitlines()[0] == f"bash completion installed in {script}"
    assert (home / ".bashrc").read_text().count(str(script)) == 1
    assert "_DIFFTOOL_COMPLETE=complete_bash" in script.read_text()


def test_completing_imports_nothing_heavy(tmp_path):
    code = (
        "import sys\n"
        "from difftool.cli.main import main\n"
        "try:\n"
        "    main([])\n"
        "finally:\n"
        "    print(sorted({name.partition('.')[0] for name in sys.modules} & set(sys.argv[1:])), file=sys.stderr)"
    )
    heavy = ["torch", "numpy", "diffusers", "transformers", "huggingface_hub"]
    given = {**os.environ, **BASH_ASKS, "COMP_WORDS": "difftool\ngenerate\n", "COMP_CWORD": "2"}
    command = [sys.executable, "-c", code, *heavy]
    ran = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=600)
    assert (ran.stderr, "builtin:shapes-image" in ran.stdout.split()) == ("[]\n", True)


def test_a_folder_that_is_gone_costs_its_files_only(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert complete_recipe("shapes-i") == ["shapes-image"]

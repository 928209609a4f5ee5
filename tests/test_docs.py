"""What the docs show is run: YAML makes plans, Python and `difftool` commands succeed, links lead somewhere."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from difftool.cli.main import main
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
STAGES = {"text_encoding", "denoising", "decoding"}
RECIPES = [*sorted((ROOT / "recipes").glob("*.yaml")), *sorted((ROOT / "difftool/builtin/recipes").glob("*.yaml"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """(page:number, text) of every fenced block of a language."""
    found = []
    for page in PAGES:
        texts = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)
        found += [(f"{page.name}:{i}", text) for i, text in enumerate(texts)]
    return found


def commands(word: str) -> list[str]:
    """Every shown command line that starts with `word`, without its comment."""
    lines = [line for _, text in blocks("sh") for line in text.splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if line.startswith(word)]


@pytest.mark.parametrize(("place", "text"), blocks("yaml"), ids=lambda value: value if ":" in value[:30] else "")
def test_a_shown_recipe_makes_a_plan(place, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shown.yaml").write_text(text)
    windows = itertools.product(range(50), range(40), range(40))  # of Wan 14B
    if "mask_strategy_wan.json" in text:
        (tmp_path / "mask_strategy_wan.json").write_text(
            json.dumps({f"{s}_{la}_{h}": [3, 3, 3] for s, la, h in windows})
        )
    assert make_plan(load_recipe(tmp_path / "shown.yaml"), run=RunOptions()).items


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_makes_a_plan(path):
    assert make_plan(load_recipe(path), run=RunOptions()).items


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_for_some_hardware_says_all_that_depends_on_it(path):
    said = load_recipe(path).recipe.model_dump(exclude_unset=True)
    assert said["name"] == path.stem and said["launch"]["device"] == "cuda"
    assert said["parallel"]["num_gpus"] == int(re.search(r"-(\d+)x[a-z]+\d+", path.stem)[1])
    assert {stage for stage, settings in said["stages"].items() if settings["precision"] != "auto"} >= STAGES
    assert said["output"]["dir"].startswith("outputs/")


@pytest.mark.parametrize("command", commands("difftool plan") + commands("difftool schema"))
def test_a_shown_plan_command_succeeds(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", commands("difftool generate"))
def test_a_shown_generate_command_is_one_that_plans(command, monkeypatch, tmp_path, capsys):
    """The built-in ones are run for real in test_end_to_end; here, each is planned."""
    monkeypatch.chdir(ROOT)
    assert main([*shlex.split(command)[1:], "--dry-run"]) == 0
    assert "items" in capsys.readouterr().out


BAD = """model: builtin:shapes-image
stages:
  denose: {precision: bf16}
  decoding: {precision: fp61}
sampling: {prompt: x, seed:   seven}
"""


def test_the_errors_on_the_front_page_are_what_the_command_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(BAD)
    assert main(["plan", "bad.yaml"]) == 2
    said = capsys.readouterr().err
    assert f"```\n{said}```" in (ROOT / "README.md").read_text(), said


@pytest.mark.slow
def test_the_python_page_runs_from_top_to_bottom_and_prints_what_it_shows(tmp_path):
    script = "\n".join(text for place, text in blocks("python") if place.startswith("python.md:"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [line.partition("# ")[2] for line in script.splitlines() if "print(" in line]


def test_links_lead_to_files():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def anchors(page):
    """Of its headings, as they are made for the web: small letters, digits, `-` and `_`."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_into_a_page_lead_to_a_heading():
    links = [(page, *link) for page in PAGES for link in re.findall(r"\]\(([\w./-]*)#([^)]+)\)", page.read_text())]
    assert len(links) > 10
    lost = [
        f"{page.name}: {name}#{at}" for page, name, at in links if at not in anchors(page.parent / (name or page.name))
    ]
    assert not lost

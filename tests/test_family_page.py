"""docs/add-a-family.md works: its code, put where it says, is a family that passes the conformance suite."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE = re.compile(r"^`(?P<path>\S+/\S+)`\n\n```\w+\n(?P<text>.*?)^```$", re.M | re.S)
COPIED = ("difftool", "docs", "tests", "recipes", "pyproject.toml")


def files_of_the_page():
    return {found["path"]: found["text"] for found in FILE.finditer((ROOT / "docs" / "add-a-family.md").read_text())}


def test_the_page_has_the_three_places():
    assert [Path(path).parent.as_posix() for path in files_of_the_page()] == [
        "difftool/families/ovis",
        "difftool/families/ovis",
        "recipes",
        "tests/families/cases",
    ]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of this project with the page's family in it."""
    folder = tmp_path_factory.mktemp("with-ovis")
    ignored = shutil.ignore_patterns("*.safetensors", "__pycache__", ".difftool")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    for path, text in files_of_the_page().items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    (folder / "difftool/families/ovis/__init__.py").touch()
    return folder


def run(project, *command):
    env = {**os.environ, "PYTHONPATH": str(project), "NO_COLOR": "1"}
    return subprocess.run([sys.executable, *command], cwd=project, env=env, capture_output=True, text=True, timeout=900)


def test_its_recipe_plans_natively_and_the_model_is_listed(project):
    plan = run(project, "-m", "difftool", "plan", "recipes/ovis-image-1xh100-80gb.yaml")
    assert plan.returncode == 0 and "OvisImagePipeline" in plan.stdout, plan.stdout + plan.stderr
    page = run(project, "-m", "difftool", "models", "show", "ovis")
    assert "ovis (Ovis-Image)" in page.stdout


def test_it_keeps_the_style(project):
    paths = [path for path in files_of_the_page() if path.endswith(".py")]
    checked = run(project, "-m", "ruff", "check", *paths)
    assert checked.returncode == 0, checked.stdout
    assert run(project, "-m", "ruff", "format", "--check", *paths).returncode == 0


@pytest.mark.slow
def test_it_passes_the_conformance_suite(project):
    tests = run(project, "-m", "pytest", "-m", "not slow", "-k", "ovis", "tests/families", "tests/pipeline")
    assert tests.returncode == 0, tests.stdout[-4000:] + tests.stderr[-2000:]
    passed = re.search(r"(\d+) passed", tests.stdout)
    assert passed and int(passed[1]) > 15, tests.stdout

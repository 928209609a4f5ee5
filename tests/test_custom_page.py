"""docs/custom-models.md works: its files make a model that runs natively and equals a plain loop, pixel by pixel."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
FILE = re.compile(r"^`(?P<path>[\w./]+)`\n\n```\w+\n(?P<text>.*?)^```$", re.M | re.S)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the page's files, and nothing else."""
    folder = tmp_path_factory.mktemp("custom")
    for found in FILE.finditer((ROOT / "docs" / "custom-models.md").read_text()):
        (folder / found["path"]).parent.mkdir(exist_ok=True)
        (folder / found["path"]).write_text(found["text"])
    return folder


def run(project, *command):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], cwd=project, env=env, capture_output=True, text=True, timeout=900)


def test_its_files_are_in_the_style_of_the_project(project):
    assert {path.name for path in project.rglob("*.py")} == {
        "blocks.py",
        "facts.py",
        "model.py",
        "make_dots.py",
        "parity.py",
    }
    check = run(project, "-m", "ruff", "check", "--select", "E,F,B,UP", "--line-length", "120", ".")
    assert check.returncode == 0, check.stdout


@pytest.mark.slow
def test_the_model_of_the_page_runs_natively_and_equals_a_plain_loop(project):
    made = run(project, "make_dots.py")
    assert made.returncode == 0, made.stderr
    generated = run(project, "-m", "difftool", "generate", "dots.yaml", "-o", "dots.png")
    assert generated.returncode == 0, generated.stdout + generated.stderr
    compared = run(project, "parity.py")
    assert compared.stdout == "equal in every pixel\n", compared.stderr


SESSION = """
from pathlib import Path

import difftool
import numpy as np

model = Path("dots/model.py")
text = model.read_text()
recipe = {"model": {"path": "dots-model", "code": "dots"}, "launch": {"device": "cpu", "threads": 1}}


def made(session):
    result = session.generate(prompt="three dots", seed=7)
    return np.asarray(result.images[0]).astype(int), result.perf


with difftool.load(recipe) as session:
    (first, perf), (again, kept) = made(session), made(session)
    assert np.array_equal(first, again) and perf.measure.load_ms > 0 and kept.measure.load_ms == 0
    model.write_text(text.replace("return decoded\\n", "return 1 - decoded\\n"))
    other, changed = made(session)
    model.write_text(text)
    assert changed.recipe.workload_sha256 != perf.recipe.workload_sha256
    assert np.abs(first + other - 255).max() <= 1 and first.std() > 1
np.save("session.npy", first)
"""


@pytest.mark.slow
def test_a_session_runs_its_family_and_takes_up_changed_code(project):
    """From Python, with a folder relative to the current one."""
    for command in (("make_dots.py",), ("-m", "difftool", "generate", "dots.yaml", "-o", "dots.png"), ("-c", SESSION)):
        done = run(project, *command)
        assert done.returncode == 0, done.stderr
    with Image.open(project / "dots.png") as picture:
        assert np.array_equal(np.load(project / "session.npy"), picture)


@pytest.mark.slow
def test_a_rule_that_is_missing_ends_the_run_with_both_lists(project):
    run(project, "make_dots.py")
    model = project / "dots" / "model.py"
    text = model.read_text()
    model.write_text(text.replace(r'(r"^layers\.", "blocks."), ', ""))
    generated = run(project, "-m", "difftool", "generate", "dots.yaml", "-o", "none.png")
    model.write_text(text)
    said = " ".join((generated.stdout + generated.stderr).split())
    assert generated.returncode == 4, said
    assert "not filled (32): transformer.blocks.0.norm1.weight" in said
    assert "not used (24): model.layers.0" in said

"""The wheel: it holds the built-in models and recipes, declares what it imports, and works far from the sources."""

import ast
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from difftool.attention import needed_packages
from difftool.builtin.shapes import Scene, is_right

ROOT = Path(__file__).parents[1]
MODULES = {"pillow": "PIL", "pyyaml": "yaml"}  # where the names differ
NEEDED_BY_OTHERS = {"accelerate", "ftfy", "safetensors"}  # diffusers: to create models, clean prompts, read weights


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a command without the caller's import path; its stdout. Fails the test with its stderr."""
    kept = {"PATH": sysconfig.get_path("scripts"), "HF_HUB_OFFLINE": "1", "HOME": str(cwd)}
    ran = subprocess.run(
        list(map(str, command)), cwd=cwd, env=kept, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run(sys.executable, *build, "--wheel-dir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that holds the wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = ("-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run(sys.executable, *install, wheel, cwd=folder)
    (site,) = folder.glob("lib/python3*/site-packages")
    # a path in a .pth file is searched last, and .pth files in it (an editable install's) are not followed
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_holds_everything_of_the_package_and_nothing_else(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {path.relative_to(ROOT) for path in ROOT.glob("difftool/**/*") if path.is_file()}
    assert packed == {path.as_posix() for path in files if "__pycache__" not in path.parts}


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def module_of(requirement: str) -> str:
    name = re.split(r"[^\w-]", requirement, maxsplit=1)[0].lower()
    return MODULES.get(name, name.replace("-", "_"))


def imported_modules() -> set[str]:
    """Top-level names of everything outside the standard library that the package imports anywhere."""
    names = set()
    for path in ROOT.glob("difftool/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Import():
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                case ast.ImportFrom(module=str(module)):
                    names.add(module.partition(".")[0])
    return names - sys.stdlib_module_names - {"difftool"}


def test_everything_imported_is_declared_and_everything_declared_is_imported() -> None:
    required = {module_of(text) for text in project()["dependencies"]}
    extras = project()["optional-dependencies"]
    optional = {module_of(text) for name in extras.keys() - {"dev"} for text in extras[name]}
    told = {module_of(name) for package in needed_packages() for name in package.distributions}
    assert imported_modules() <= required | optional | told
    assert required - NEEDED_BY_OTHERS <= imported_modules() and optional <= imported_modules() | told


def test_every_requirement_is_pinned() -> None:
    pins = {module_of(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    wanted = [*project()["dependencies"], *project()["optional-dependencies"]["dev"]]
    assert {module_of(text) for text in wanted} <= pins


def test_the_installed_command_knows_its_version(installed: Path, tmp_path: Path) -> None:
    assert project()["version"] in run(installed.with_name("difftool"), "--version", cwd=tmp_path)


@pytest.mark.slow
def test_the_wheel_makes_the_picture_that_the_prompt_says(installed: Path, tmp_path: Path) -> None:
    where = run(installed, "-c", "import difftool; print(difftool.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parents[1])
    prompt = ("generate", "builtin:shapes-image", "-p", "a red circle", "--seed", "7", "-o", "x.png")
    run(installed, "-m", "difftool", *prompt, cwd=tmp_path)
    picture = np.asarray(Image.open(tmp_path / "x.png").convert("RGB"))
    assert is_right(Scene("circle", "red", "white", ""), picture)

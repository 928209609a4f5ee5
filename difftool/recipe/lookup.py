"""What a RECIPE argument means: a file (a recipe, or a medium with one inside), a built-in recipe, or a model."""

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from difftool.errors import RecipeError
from difftool.recipe.flags import MEDIA

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
RECIPE_SUFFIXES = (".yaml", ".yml", ".json")
FILE_SUFFIXES = (*RECIPE_SUFFIXES, ".safetensors", *(f".{name}" for name in MEDIA))  # what ends so is meant as a file
PROMPT = "a prompt goes in -p"
SHIPPED = "difftool recipes list names the recipes that ship, difftool models the models"


def builtin_recipes() -> dict[str, Path]:
    """The recipes that ship with difftool, by name."""
    folder = Path(str(files("difftool"))) / "builtin" / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def resolve_source(text: str) -> Path | Mapping[str, object]:
    """A recipe file, or the mapping of a recipe that only names a model. An existing path wins.

    Raises RecipeError with the nearest names.
    """
    path = Path(os.path.expanduser(text))
    if os.path.exists(path):
        return _existing(text, path)
    recipes = builtin_recipes()
    if text in recipes:
        return recipes[text]
    if text.startswith("builtin:"):
        return {"model": text}
    if path.suffix.lower() in FILE_SUFFIXES:
        raise RecipeError(f"no such file: {text!r}", hint=_near(path, recipes) or SHIPPED)
    if HUB_ID.fullmatch(text):
        return {"model": text}
    if any(space in text for space in " \t\n"):
        raise RecipeError(f"{text!r} is no recipe, file or model", hint=PROMPT)
    near = _near(path, recipes)
    if "/" in text:
        raise RecipeError(f"no such file or folder: {text!r}", hint=near or SHIPPED)
    raise RecipeError(f"no file, built-in recipe or model is called {text!r}", hint=f"{near or ''} {PROMPT}".lstrip())


def _existing(text: str, path: Path) -> Path | Mapping[str, object]:
    if path.suffix == ".safetensors" or (path.is_dir() and (path / "model_index.json").exists()):
        return {"model": os.path.abspath(path)}
    if path.is_dir():
        raise RecipeError(
            f"{text} is a folder without model_index.json: neither a recipe nor a model",
            hint="give a recipe file, or the folder of a diffusers checkpoint",
        )
    return path


def _near(path: Path, recipes: Mapping[str, Path]) -> str | None:
    beside = [str(path.parent / found.name) for found in _recipes_in(path.parent)]
    close = get_close_matches(str(path), beside, n=2) + get_close_matches(str(path), recipes, n=2)
    return f"did you mean {' or '.join(close)}?" if close else None


def _recipes_in(folder: Path) -> list[Path]:
    return sorted(path for suffix in RECIPE_SUFFIXES for path in folder.glob(f"*{suffix}"))

"""What the shell offers for the words of a command line: recipes, models and recipe keys.

Where nothing of ours matches, the shell completes files by itself, better than we could.
"""

import os
import shlex
from collections.abc import MutableMapping, Sequence
from pathlib import Path

MEDIA_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".mp4", ".gif", ".wav", ".safetensors")
BEFORE = "_DIFFTOOL_BEFORE"  # what bash cut off the word it asks about, up to its last ':' or '='
WORDS, CURSOR, BREAKS = "COMP_WORDS", "COMP_CWORD", (":", "=")


def complete_recipe(incomplete: str) -> list[str]:
    """Built-in recipes and models, with the files of this folder that may be a RECIPE too.

    Files join only where names match as well: alone, they and every other folder are the shell's.
    """
    from difftool.recipe.lookup import builtin_recipes

    found = _matching([*builtin_recipes(), *_models()], incomplete)
    return found + (_files(incomplete) if found and not _before() else [])


def complete_builtin_recipe(incomplete: str) -> list[str]:
    """The recipes that ship with difftool."""
    from difftool.recipe.lookup import builtin_recipes

    return _matching([*builtin_recipes()], incomplete)


def complete_model(incomplete: str) -> list[str]:
    """Known models and families."""
    from difftool.families.index import all_families

    return _matching([*_models(), *(family.name for family in all_families())], incomplete)


def complete_key(incomplete: str) -> list[str]:
    """Keys for `--set`."""
    from difftool.recipe.keys import known_keys

    return _matching([f"{key}=" for key in known_keys()], incomplete)


def join_split_word(environment: MutableMapping[str, str]) -> None:
    """Puts together the word at the cursor that bash has cut at ':' and '='; it wants only the last piece completed.

    Changes COMP_WORDS and COMP_CWORD so that the word has one place, and keeps in BEFORE what lies before that piece.
    """
    try:
        words = shlex.split(environment.get(WORDS, ""))
    except ValueError:  # an open quote holds no name of ours
        return
    cursor = int(environment.get(CURSOR, "0"))
    if cursor >= len(words):
        return
    at_break = words[cursor] in BREAKS
    start = cursor + at_break
    while start > 2 and words[start - 1] in BREAKS and not words[start - 2].startswith("-"):
        start -= 2
    if start < cursor:
        last = "" if at_break else words[cursor]
        environment[BEFORE] = "".join(words[start : cursor + at_break])
        environment[WORDS] = "\n".join([*map(shlex.quote, words[:start]), last])
        environment[CURSOR] = str(start)


def _before() -> str:
    return os.environ.get(BEFORE, "")


def _matching(names: Sequence[str], incomplete: str) -> list[str]:
    """Those that begin so, without what the shell has taken off already."""
    before = _before()
    return [name.removeprefix(before) for name in names if name.startswith(before + incomplete)]


def _models() -> list[str]:
    from difftool.families.index import all_families
    from difftool.planning.checkpoint import BUILTIN, builtin_models

    hub = [known.hub_id for family in all_families() for known in family.checkpoints]
    return [*(BUILTIN + name for name in builtin_models()), *hub]


def _files(incomplete: str) -> list[str]:
    """Recipes, media and folders of the current folder; hidden ones and those that need quotes are the shell's."""
    from difftool.recipe.lookup import RECIPE_SUFFIXES

    try:
        paths = sorted(Path().iterdir())
    except OSError:
        return []
    suffixes = (*RECIPE_SUFFIXES, *MEDIA_SUFFIXES)
    names = [f"{path.name}/" if path.is_dir() else path.name for path in paths if _fits(path, suffixes)]
    return [name for name in names if name.startswith(incomplete) and shlex.quote(name) == name]


def _fits(path: Path, suffixes: tuple[str, ...]) -> bool:
    return not path.name.startswith(".") and (path.suffix.lower() in suffixes or path.is_dir())

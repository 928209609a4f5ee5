"""Fast, exact and measured diffusion inference from one recipe file.

`load` opens a session, whose `generate` makes pictures and videos; `Recipe` is the schema of a recipe, and `errors`
holds what is raised. Each is imported when it is first asked for: `import difftool` itself costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from difftool import errors
    from difftool.recipe.schema import Recipe
    from difftool.session import Profiled, Result, Session, load

__all__ = ["Profiled", "Recipe", "Result", "Session", "__version__", "errors", "load"]

_HOMES = {
    "Profiled": "difftool.session",
    "Recipe": "difftool.recipe.schema",
    "Result": "difftool.session",
    "Session": "difftool.session",
    "load": "difftool.session",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "errors":
        return import_module("difftool.errors")
    if name == "__version__":
        return import_module("importlib.metadata").version("difftool")
    raise AttributeError(f"module 'difftool' has no attribute {name!r}")

"""Families from outside this package: a folder that a recipe names in `model.code`, or an installed package.

Importing them runs their code. Nothing else does: a folder is named by its user, a package was installed by them, and
no code of a hub repository is ever taken.
"""

import hashlib
import importlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from difftool.errors import Problem, RecipeError
from difftool.facts import FamilyFacts

GROUP = "difftool.families"  # of entry points: a pipeline class = the module that holds FACTS
FACTS = "facts"  # the module of a folder
# what importing a module that is wrong raises; anything else is not the import's fault
BROKEN = (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, LookupError) + (
    (OSError, RuntimeError, AssertionError, ArithmeticError)
)

_imported: dict[str, tuple[Path, str]] = {}  # a package of `model.code`: its folder and digest


def code_sha256(folder: Path) -> str:
    """Digest of a folder's Python files, by name and content."""
    return _sha256({path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")})


def registered_sha256(pipeline_class: str) -> str:
    """Digest of the Python files of an installed family: of the packages, whole, that its facts and models are in."""
    (entry, *_) = _registering(pipeline_class)
    facts = _facts(entry.value, f"model.path: {describe(entry)}")
    packages = {module.partition(".")[0] for module in (entry.value, *(p.model for p in facts.pipelines.values()))}
    return _sha256(dict(pair for package in packages for pair in _files(package.partition(":")[0])))


def _files(package: str) -> Iterator[tuple[str, Path]]:
    """The Python files of an importable package or module, by their names in it."""
    spec = find_spec(package)
    if spec is None:
        raise _fault(f"{package}, which a family's FACTS name, cannot be imported", key="model.path")
    for place in spec.submodule_search_locations or ():
        folder = Path(place)
        yield from ((f"{package}/{path.relative_to(folder).as_posix()}", path) for path in folder.rglob("*.py"))
    if not spec.submodule_search_locations and spec.origin is not None:
        yield package, Path(spec.origin)


def _sha256(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        content = files[name].read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def family_of_folder(folder: Path) -> FamilyFacts:
    """FACTS of `facts.py` in a folder, whose name becomes a package that its modules can import each other by.

    A folder whose files have changed is imported again. Raises RecipeError.
    """
    folder = folder.resolve()
    if not (folder / f"{FACTS}.py").is_file():
        what = f"has no {FACTS}.py" if folder.is_dir() else "is no folder"
        raise _fault(f"{folder} {what}; a family is a folder with {FACTS}.py and model.py")
    if not folder.name.isidentifier():
        raise _fault(f"the folder's name {folder.name!r} is no name of a Python module; rename it")
    _import_package(folder)
    return _facts(f"{folder.name}.{FACTS}", "model.code")


def registered_family(pipeline_class: str) -> FamilyFacts | None:
    """The installed family that registers this pipeline class; only this one is imported. Raises RecipeError."""
    entries = _registering(pipeline_class)
    if not entries:
        return None
    if len({entry.value for entry in entries}) > 1:
        both = " and ".join(sorted(describe(entry) for entry in entries))
        raise _fault(f"{pipeline_class} is registered by {both}; uninstall one of them", key="model.path")
    facts = _facts(entries[0].value, f"model.path: {describe(entries[0])}")
    if pipeline_class not in facts.pipelines:
        known = ", ".join(facts.pipelines)
        message = f"{describe(entries[0])} registers {pipeline_class}, and its FACTS have {known}"
        raise _fault(message, key="model.path")
    return facts


def describe(entry: EntryPoint) -> str:
    """An entry point in words: its module and the package that brings it."""
    return f"{entry.value} of {entry.dist.name}" if entry.dist is not None else entry.value


def _registering(pipeline_class: str) -> list[EntryPoint]:
    return [entry for entry in _entries(tuple(sys.path)) if entry.name == pipeline_class]


@lru_cache(maxsize=2)
def _entries(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """What is registered by the packages of this search path. Imports none of them."""
    return tuple(entry_points(group=GROUP))


def _import_package(folder: Path) -> None:
    """Makes the folder a package under its own name, without touching the search path."""
    name, state = folder.name, (folder, code_sha256(folder))
    if _imported.get(name) == state:
        return
    _refuse_clash(folder)
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]
    importlib.invalidate_caches()
    start = folder / "__init__.py"
    if start.is_file():
        spec = spec_from_file_location(name, start, submodule_search_locations=[str(folder)])
        assert spec is not None and spec.loader is not None, start
    else:
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
    sys.modules[name] = package = module_from_spec(spec)
    if spec.loader is not None and start.is_file():
        try:
            spec.loader.exec_module(package)
        except BROKEN as error:
            del sys.modules[name]
            raise _fault(f"{start} cannot be imported: {last_line(error)}") from error
    _imported[name] = state


def _refuse_clash(folder: Path) -> None:
    """Raises RecipeError for a folder that would stand in the way of another module."""
    if folder.name in _imported:
        return
    spec = find_spec(folder.name)
    places = [] if spec is None else [Path(place).resolve() for place in spec.submodule_search_locations or ()]
    if spec is not None and folder not in places:
        raise _fault(f"{folder} has the name of the Python module at {spec.origin or places[0]}; rename the folder")


def _facts(module: str, what: str) -> FamilyFacts:
    try:
        facts = getattr(importlib.import_module(module), "FACTS", None)
    except BROKEN as error:
        raise _fault(f"{module} cannot be imported: {last_line(error)}", what=what) from error
    if not isinstance(facts, FamilyFacts):
        raise _fault(f"{module} has no FACTS of type difftool.facts.FamilyFacts", what=what)
    return facts


def last_line(error: BaseException) -> str:
    """Where an import failed, and the last line of its traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}"
    else:
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
    return f"{place}: {traceback.format_exception_only(error)[-1].strip()}"


def _fault(message: str, *, key: str = "model.code", what: str | None = None) -> RecipeError:
    what = what or key
    return RecipeError([Problem(what.partition(":")[0], f"{what}: {message}")])

"""The families difftool knows, by their torch-free facts. A folder beside this file is a family; others come in by a
recipe's `model.code`, or with a package that registers them.
"""

import importlib
import pkgutil
from functools import lru_cache
from pathlib import Path

from difftool import families
from difftool.errors import Problem, RecipeError
from difftool.facts import FamilyFacts
from difftool.families.outside import code_sha256, family_of_folder, registered_family, registered_sha256


@lru_cache(maxsize=1)
def all_families() -> tuple[FamilyFacts, ...]:
    """Facts of every family of difftool's own, by name."""
    names = [module.name for module in pkgutil.iter_modules(families.__path__) if module.ispkg]
    return tuple(importlib.import_module(f"difftool.families.{name}.facts").FACTS for name in sorted(names))


def family_of_class(pipeline_class: str) -> FamilyFacts | None:
    """The family of difftool's own that runs a model_index.json `_class_name`."""
    return next((facts for facts in all_families() if pipeline_class in facts.pipelines), None)


def native_family(pipeline_class: str) -> FamilyFacts | None:
    """The family that runs a pipeline class: difftool's own, or an installed one. Raises RecipeError where both do, and
    for an installed one that cannot be imported.
    """
    own, registered = family_of_class(pipeline_class), registered_family(pipeline_class)
    if own is not None and registered is not None:
        message = f"{pipeline_class} is registered by the installed family {registered.name}, and run by difftool's own"
        raise RecipeError([Problem("model.path", f"model.path: {message} {own.name}; uninstall the first")])
    return own or _named_apart(registered, "model.path")


def code_family(code: str) -> FamilyFacts:
    """The family of a recipe's `model.code`. Raises RecipeError for a folder that is none."""
    facts = _named_apart(family_of_folder(Path(code)), "model.code")
    assert facts is not None
    return facts


def family_sha256(pipeline_class: str, code: str | None) -> str | None:
    """Digest of the code of an out-of-tree family that runs a pipeline class; None for one of difftool's own."""
    if code is not None:
        return code_sha256(Path(code))
    return registered_sha256(pipeline_class) if registered_family(pipeline_class) is not None else None


def planned_family(name: str, pipeline_class: str, code: str | None) -> FamilyFacts:
    """The family that a plan has chosen for a pipeline class. Raises RecipeError where it is there no more."""
    facts = native_family(pipeline_class) if code is None else code_family(code)
    if facts is None or facts.name != name or pipeline_class not in facts.pipelines:
        raise RecipeError(f"the family {name} of {pipeline_class}, which the plan chose, is not installed here")
    return facts


def _named_apart(facts: FamilyFacts | None, key: str) -> FamilyFacts | None:
    """Raises RecipeError for a family under the name of one of difftool's own: records would mix them up."""
    if facts is not None and any(facts.name == own.name for own in all_families()):
        message = f"its FACTS have the name {facts.name!r}, which is one of difftool's own families; choose another"
        raise RecipeError([Problem(key, f"{key}: {message}")])
    return facts

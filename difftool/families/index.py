"""The families difftool knows, by their torch-free facts. A folder beside this file is a family."""

import importlib
import pkgutil
from functools import lru_cache

from difftool import families
from difftool.facts import FamilyFacts


@lru_cache(maxsize=1)
def all_families() -> tuple[FamilyFacts, ...]:
    """Facts of every family, by name."""
    names = [module.name for module in pkgutil.iter_modules(families.__path__) if module.ispkg]
    return tuple(importlib.import_module(f"difftool.families.{name}.facts").FACTS for name in sorted(names))


def family_facts(name: str) -> FamilyFacts:
    """The facts of one family, by its name."""
    return next(facts for facts in all_families() if facts.name == name)


def family_of_class(pipeline_class: str) -> FamilyFacts | None:
    """The family that runs a model_index.json `_class_name`."""
    return next((facts for facts in all_families() if pipeline_class in facts.pipeline_classes), None)

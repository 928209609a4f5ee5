"""The families difftool knows, by their torch-free facts."""

import importlib
from functools import lru_cache

from difftool.facts import FamilyFacts

FAMILIES = ("flux1",)


@lru_cache(maxsize=1)
def all_families() -> tuple[FamilyFacts, ...]:
    """Facts of every family, in the order of the compatibility matrix."""
    return tuple(importlib.import_module(f"difftool.families.{name}.facts").FACTS for name in FAMILIES)


def family_facts(name: str) -> FamilyFacts:
    """The facts of one family, by its name."""
    return next(facts for facts in all_families() if facts.name == name)


def family_of_class(pipeline_class: str) -> FamilyFacts | None:
    """The family that runs a model_index.json `_class_name`."""
    return next((facts for facts in all_families() if pipeline_class in facts.pipeline_classes), None)

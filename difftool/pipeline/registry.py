"""From a family's name to its code: nothing of a family is imported until a plan chooses it."""

import importlib

from difftool.families.index import family_facts
from difftool.pipeline.config import PipelineConfig


def load_config(family: str) -> PipelineConfig:
    """The family's PipelineConfig, imported by the `module:Class` its facts give."""
    module, _, name = family_facts(family).model.partition(":")
    config: PipelineConfig = getattr(importlib.import_module(module), name)()
    return config

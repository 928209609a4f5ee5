"""From a family's name to its code: nothing of a family is imported until a plan chooses it."""

import importlib

from difftool.errors import PlanError
from difftool.families.index import family_sha256, planned_family
from difftool.pipeline.config import PipelineConfig


def load_config(
    family: str, pipeline_class: str, *, code: str | None = None, digest: str | None = None
) -> PipelineConfig:
    """The family's PipelineConfig for a pipeline class, imported by the `module:Class` its facts give.

    `code` is the folder of an out-of-tree family. Raises PlanError where the files of one, of a folder or installed,
    are no longer those of `digest`.
    """
    if digest is not None and family_sha256(pipeline_class, code) != digest:
        what = code or f"the installed family {family}"
        raise PlanError(f"{what} has changed since the run was planned", hint="start the run again")
    module, _, name = planned_family(family, pipeline_class, code).pipelines[pipeline_class].model.partition(":")
    config: PipelineConfig = getattr(importlib.import_module(module), name)()
    return config

"""Fetches what a plan's model needs from the hub: `python -m difftool.pipeline.fetch`, told on stdin what that is.

stdin holds `{"model": …, "components": […], "loras": […]}`; stdout gets a JSON line with the `folder` and the
`repositories` that a family's weight sources name, or the `error`.
"""

import json
import os
import sys
from typing import Any

from difftool.components.accounting import WeightSource
from difftool.components.locate import locate, locate_components, locate_lora, locate_sources
from difftool.errors import DifftoolError
from difftool.pipeline.registry import load_config
from difftool.planning.plan import LoraPlan, ModelPlan


def fetch(wanted: dict[str, Any]) -> dict[str, Any]:
    """Brings everything of a model, of what replaces its parts and of what its family takes from elsewhere."""
    model = ModelPlan.model_validate(wanted["model"])
    sources = _sources(model)
    folder = locate(model, tuple(wanted["components"]), _unheard, sources=sources)
    locate_components(model, folder, _unheard)
    locate_sources(sources, _unheard)
    for lora in wanted["loras"]:
        locate_lora(LoraPlan.model_validate(lora), _unheard)
    repositories = dict.fromkeys(source.repo for source in sources if source.repo is not None)
    return {"folder": str(folder), "repositories": list(repositories)}


def _sources(model: ModelPlan) -> tuple[WeightSource, ...]:
    """Those that the model's family declares; of a model that is not known yet, none."""
    if not model.family or model.backend != "native":
        return ()
    return load_config(model.family, model.pipeline_class, code=model.code, digest=model.code_sha256).weight_sources


def _unheard() -> None:
    """Bytes arrive: whoever waits sees them on the disk."""


def main() -> int:
    """0, or the exit code of the error that is told."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        answers.write(json.dumps(fetch(json.load(sys.stdin))) + "\n")
    except DifftoolError as error:
        told = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
        answers.write(json.dumps(told) + "\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

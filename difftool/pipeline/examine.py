"""Examines a checkpoint without loading it: `python -m difftool.pipeline.examine`, told on stdin which.

stdin holds `{"path": …, "names": […], "own": …}`: a weight file, or a pipeline folder with its components, and of a
family with classes of its own which it is. stdout gets a JSON line for each component. torch is imported only where
headers and indexes are sound.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftool.components.check import Weights, find_faults
from difftool.components.headers import Stored, check_safetensors, refuse_pickle
from difftool.errors import PlanError, WeightsError

if TYPE_CHECKING:
    from difftool.pipeline.config import PipelineConfig

Found = dict[str, Any]
UNREAD = "shapes and numbers, while another component is damaged"


def examine(path: Path, names: Sequence[str], own: Mapping[str, Any] | None = None) -> Iterator[Found]:
    """One answer for each named component of a pipeline folder, or one for a weight file. `own` are the arguments of
    `load_config` for a family whose classes and weight sources count; its modules that do not fit have one answer.
    """
    if path.is_file():
        yield _file(path)
        return
    config = _config(own) if own is not None else None
    theirs = config.component_classes if config is not None else {}
    sound: dict[str, Weights] = {}
    faults = False
    for name, found in find_faults(path, [name for name in names if name not in theirs]):
        if isinstance(found, Weights):
            sound[name] = found
        else:
            faults = faults or found is not None
            yield {"name": name} if found is None else _fault(name, found)
    if config is not None:
        for answer in _own(config, path, read=not faults):
            faults = faults or "fault" in answer
            yield answer
    # with a fault, what is sound so far is not read through, so that the fault is told at once
    yield from (
        _sound(name, weights, UNREAD) if faults else _read(path, name, weights) for name, weights in sound.items()
    )


def _read(path: Path, name: str, weights: Weights) -> Found:
    from difftool.components.contents import check_contents

    try:
        return _sound(name, weights, check_contents(path, name, weights))
    except WeightsError as error:
        return _fault(name, error)


def _config(own: Mapping[str, Any]) -> "PipelineConfig":
    from difftool.pipeline.registry import load_config

    return load_config(own["family"], own["pipeline_class"], code=own["code"], digest=own["digest"])


def _own(config: "PipelineConfig", folder: Path, *, read: bool) -> Iterator[Found]:
    """The components that a family has classes for: its modules together, as they may share their files."""
    from torch import nn

    from difftool.components.contents import check_numbers
    from difftool.components.locate import locate_sources
    from difftool.components.sources import from_pretrained, own_modules

    classes = config.component_classes
    for name in [name for name, kind in classes.items() if not issubclass(kind, nn.Module)]:
        try:
            from_pretrained(classes[name], folder / name)
        except WeightsError as error:
            yield _fault(name, error)
        else:
            yield {"name": name}
    found: dict[str, list[Stored]] = {}
    try:
        sources = locate_sources(config.weight_sources, lambda: None)
        by_file: dict[Path, dict[str, Stored]] = {}
        for name, (_, filled) in own_modules(classes, sources, folder).items():
            pieces = {(piece.stored.file, piece.name): piece.stored for parts in filled.values() for piece in parts}
            found[name] = list(pieces.values())
            for (file, tensor), stored in pieces.items():
                by_file.setdefault(file, {})[tensor] = stored
        for tensors in by_file.values() if read else ():
            check_numbers(Weights(tensors))
    except (WeightsError, PlanError) as error:
        yield _fault(", ".join(name for name, kind in classes.items() if issubclass(kind, nn.Module)), error)
        return
    for name, tensors in found.items():
        files, size = len({stored.file for stored in tensors}), sum(stored.size for stored in tensors)
        answer = {"name": name, "files": files, "tensors": len(tensors), "bytes": size}
        yield answer if read else {**answer, "unchecked": UNREAD}


def _file(path: Path) -> Found:
    try:
        refuse_pickle(path)
        weights = Weights(check_safetensors(path))
        from difftool.components.contents import check_numbers

        check_numbers(weights)
    except WeightsError as error:
        return _fault(path.name, error)
    return _sound(path.name, weights)


def _fault(name: str, error: WeightsError | PlanError) -> Found:
    return {"name": name, "fault": error.message, "hint": error.hint}


def _sound(name: str, weights: Weights, unchecked: str | None = None) -> Found:
    answer = {"name": name, "files": len(weights.files), "tensors": len(weights.tensors), "bytes": weights.size}
    return answer if unchecked is None else {**answer, "unchecked": unchecked}


def main() -> int:
    """Nothing but JSON lines reaches stdout, whatever a library prints."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    told = json.load(sys.stdin)
    for found in examine(Path(told["path"]), told["names"], told["own"]):
        answers.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

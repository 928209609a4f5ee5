"""What planning can know of a model without loading it: its family, architecture numbers and own defaults."""

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from difftool.errors import Problem, RecipeError, WeightsError
from difftool.facts import CheckpointFacts, FamilyFacts
from difftool.families.index import all_families, family_of_class
from difftool.planning.plan import ModelPlan
from difftool.recipe.running import Launch
from difftool.recipe.sampling import SamplingValues

BUILTIN = "builtin:"
OWN_DEFAULTS = "difftool.json"  # beside model_index.json: {"sampling": {...}, "launch": {"threads": N}}


@dataclass(frozen=True)
class Checkpoint:
    """One model as planning sees it. `transformer` are its config's keys, `defaults` the sampling values it brings.

    `threads` is the CPU thread count a checkpoint asks for: a tiny model's operators are too small to be split.
    """

    model: ModelPlan
    family: FamilyFacts
    transformer: Mapping[str, Any]
    defaults: Mapping[str, Any]
    defaults_origin: str
    threads: int | None = None


def builtin_models() -> list[str]:
    """Names after `builtin:` of the checkpoints that ship with difftool."""
    root = resources.files("difftool.builtin")
    return sorted(entry.name for entry in root.iterdir() if (entry / "model_index.json").is_file())


def find_checkpoint(path: str, model_id: str | None, revision: str | None) -> Checkpoint:
    """Looks a recipe's model up. Raises RecipeError for a name nobody knows, WeightsError for a folder that is not one.

    A folder's `_class_name` chooses its family; `model_id` names known defaults for a renamed folder.
    """
    known = _known(model_id or path)
    if model_id is not None and known is None:
        raise RecipeError([Problem("model.id", f"model.id: no known model is named {model_id!r}{_nearest(model_id)}")])
    if path.startswith(BUILTIN):
        name = path.removeprefix(BUILTIN)
        if name not in builtin_models():
            raise RecipeError([Problem("model.path", _unknown_builtin(name))])
        return _from_folder(path, Path(str(resources.files("difftool.builtin") / name)), None, known)
    folder = Path(path).expanduser()
    if folder.is_dir():
        return _from_folder(path, folder.resolve(), None, known)
    if path.startswith((".", "/", "~")) or path.count("/") != 1 or os.sep != "/" and os.sep in path:
        raise WeightsError(f"no model folder at {path}", hint="give a diffusers folder, a hub id or builtin:NAME")
    if cached := _cached_snapshot(path, revision):
        return _from_folder(path, cached, path, known)
    if known is None:
        raise RecipeError([Problem("model.path", f"model.path: no known model is named {path!r}{_nearest(path)}")])
    return _from_facts(path, revision, *known)


def _known(name: str) -> tuple[FamilyFacts, CheckpointFacts] | None:
    return next(((f, c) for f in all_families() for c in f.checkpoints if c.hub_id.lower() == name.lower()), None)


def _nearest(name: str) -> str:
    every = [c.hub_id for f in all_families() for c in f.checkpoints] + [BUILTIN + n for n in builtin_models()]
    close = difflib.get_close_matches(name, every, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(every)}"


def _unknown_builtin(name: str) -> str:
    names = builtin_models()
    return f"model.path: no built-in model is named {name!r}; there is {', '.join(BUILTIN + n for n in names)}"


def _cached_snapshot(hub_id: str, revision: str | None) -> Path | None:
    """The hub cache's folder of a model that was fetched before. Source: huggingface_hub's cache layout."""
    home = os.environ.get("HF_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    root = Path(os.environ.get("HF_HUB_CACHE", os.path.join(home, "hub"))).expanduser()
    repo = root / f"models--{hub_id.replace('/', '--')}"
    reference = repo / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision or ""
    snapshot = repo / "snapshots" / commit
    return snapshot if commit and (snapshot / "model_index.json").is_file() else None


def _from_facts(path: str, revision: str | None, family: FamilyFacts, facts: CheckpointFacts) -> Checkpoint:
    model = ModelPlan(
        name=path,
        hub_id=facts.hub_id,
        folder=None,
        revision=revision,
        family=family.name,
        pipeline_class=facts.pipeline_class,
        builtin=False,
    )
    return Checkpoint(model, family, facts.transformer, facts.sampling, f"model {facts.hub_id}")


def _from_folder(
    path: str, folder: Path, hub_id: str | None, known: tuple[FamilyFacts, CheckpointFacts] | None
) -> Checkpoint:
    """A checkpoint on this disk. A hub model keeps its id: the worker completes what the cache may lack."""
    index = _read_json(folder / "model_index.json")
    class_name = index.get("_class_name")
    family = family_of_class(str(class_name))
    if family is None:
        runs = ", ".join(c for f in all_families() for c in f.pipeline_classes)
        raise RecipeError(
            [
                Problem(
                    "model.path",
                    f"model.path: {path} is a {class_name}, which no family runs yet; pipelines that run: {runs}",
                )
            ]
        )
    builtin = path.startswith(BUILTIN)
    model = ModelPlan(
        name=path,
        hub_id=hub_id,
        folder=None if builtin or hub_id else str(folder),
        revision=None,
        family=family.name,
        pipeline_class=str(class_name),
        builtin=builtin,
    )
    own, threads = _own_defaults(folder / OWN_DEFAULTS)
    defaults = {**(known[1].sampling if known else {}), **own}
    origin = f"model {known[1].hub_id}" if known and not own else "the checkpoint"
    config = folder / "transformer" / "config.json"
    transformer = _read_json(config) if config.is_file() else {}
    return Checkpoint(model, family, transformer, defaults, origin, threads)


def _own_defaults(path: Path) -> tuple[dict[str, Any], int | None]:
    """Sampling values and CPU threads that a checkpoint asks for, typed as in a recipe. Raises WeightsError."""
    if not path.is_file():
        return {}, None
    content = _read_json(path)
    try:
        sampling = SamplingValues.model_validate(content.get("sampling", {}))
        launch = Launch.model_validate(content.get("launch", {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WeightsError(f"{path}: {where}: {first['msg']}", hint="its keys are those of a recipe") from None
    given = sampling.model_dump(mode="json", include=sampling.model_fields_set)
    return given, launch.threads if isinstance(launch.threads, int) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path.parent} has no {path.name}", hint="a diffusers pipeline folder has one") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path} does not hold a mapping")
    return content

"""The components that a recipe replaces: where each one's weights come from, and that its class is the pipeline's."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from difftool.errors import Problem, RecipeError, WeightsError
from difftool.planning.checkpoint import (
    BUILTIN,
    Checkpoint,
    cached_snapshot,
    checkpoint_folder,
    known_checkpoints,
    read_json,
)
from difftool.planning.loras import HUB, PICKLES, SUFFIX
from difftool.planning.plan import ComponentPlan

CONFIGS = ("transformer", "vae")  # components whose config planning reads
FETCH = "fetch it first: difftool models fetch"


Given = Mapping[str, Mapping[str, Any]]  # `model.components` of a recipe: path and revision, by component


def replace_components(components: Given, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with other weights for some components, and with what their configs say.

    Raises RecipeError for a component the pipeline has not, or one of another class, and WeightsError for what is not
    there or is refused.
    """
    known = (*checkpoint.pipeline.components, *checkpoint.pipeline.optional)
    for name in components:
        key = f"model.components.{name}"
        if checkpoint.model.backend != "native":
            message = f"{key}: {checkpoint.model.pipeline_class} runs as diffusers has it, with its own components"
            raise RecipeError([Problem(key, message)])
        if name not in known:
            message = f"{key}: {checkpoint.model.pipeline_class} has no such component; it has {', '.join(known)}"
            raise RecipeError([Problem(key, message)])
    if not components:
        return checkpoint
    found = {name: place(name, **given) for name, given in components.items()}
    read = {name: config for name, plan in found.items() if (config := _config(name, plan)) is not None}
    for name, config in read.items():
        _check_class(name, found[name].name, config, checkpoint)
    configs = {**checkpoint.configs, **{name: read[name] for name in CONFIGS if name in read}}
    return replace(checkpoint, model=checkpoint.model.model_copy(update={"components": found}), configs=configs)


def base_of(model: Mapping[str, Any]) -> tuple[str, Given]:
    """The path of the whole model, and what of it comes from elsewhere. A single file as `model.path` is the
    transformer of `model.id`. Raises RecipeError, and WeightsError for a pickle or a file that is not there.
    """
    path, components = model["path"], dict(model["components"])
    local = Path(path).expanduser()
    if local.suffix in PICKLES:
        place("transformer", path)
    if local.suffix != SUFFIX:
        return path, components
    if not local.is_file():
        raise WeightsError(f"there is no file {path}", hint="give a diffusers folder, a hub id or builtin:NAME")
    if model["id"] is None:
        what = "one file holds the weights of one transformer: model.id says which model it belongs to"
        known = ", ".join(checkpoint.hub_id for checkpoint in known_checkpoints())
        raise RecipeError([Problem("model.path", f"model.path: {path}: {what}; known: {known}")])
    if "transformer" in components:
        message = "model.components.transformer: model.path is the transformer's file already; give one of them"
        raise RecipeError([Problem("model.components.transformer", message)])
    return model["id"], {**components, "transformer": {"path": path}}


def place(name: str, path: str, revision: str | None = None) -> ComponentPlan:
    """Where a replacement lies: a weight file, a component's folder, a pipeline's folder that has it, or the hub.

    Raises WeightsError for what is not there or is refused, and RecipeError for a revision of a local one.
    """
    local = Path(path).expanduser()
    if revision is not None and (path.startswith(BUILTIN) or local.exists()):
        key = f"model.components.{name}.revision"
        raise RecipeError([Problem(key, f"{key}: it is for a hub repository, and {path} is on this disk")])
    if local.suffix in PICKLES:
        raise WeightsError(
            f"model.components.{name}: {path} is a pickle, which can run code when loaded: refused",
            hint="convert it to .safetensors",
        )
    if local.suffix == SUFFIX and (local.is_file() or HUB.fullmatch(path) is None):
        if not local.is_file():
            raise WeightsError(f"model.components.{name}: there is no file {path}")
        return ComponentPlan(name=path, file=str(local.resolve()))
    if path.startswith(BUILTIN) or local.is_dir():
        folder = checkpoint_folder(path)
        assert folder is not None
        return ComponentPlan(name=path, folder=str(_within(name, folder)))
    match = HUB.fullmatch(path)
    if match is None or path.startswith((".", "/", "~")):
        raise WeightsError(
            f"model.components.{name}: there is no folder {path}",
            hint="give a component's folder, a .safetensors file or a hub id",
        )
    inside = "weight_name" if local.suffix == SUFFIX else "subfolder"
    return ComponentPlan(name=path, hub_id=match[1], revision=revision, **{inside: match[2]})


def _within(name: str, folder: Path) -> Path:
    return folder / name if (folder / "model_index.json").is_file() else folder


def _config(name: str, plan: ComponentPlan) -> dict[str, Any] | None:
    """The component's config, where it has one on this machine. Raises WeightsError where planning cannot do without"""
    if plan.file is not None or plan.weight_name is not None:
        return None  # the base's holds
    folder = Path(plan.folder) if plan.folder is not None else _cached(name, plan)
    if folder is not None and (folder / "config.json").is_file():
        return read_json(folder / "config.json")
    if folder is not None and plan.folder is not None and not folder.is_dir():
        raise WeightsError(f"model.components.{name}: {folder.parent} has no {name} folder")
    if name in CONFIGS:
        hint = None if plan.hub_id is None else f"{FETCH} RECIPE"
        what = "has no config.json" if plan.hub_id is None else "is not on this machine, and its config decides sizes"
        raise WeightsError(f"model.components.{name}: {plan.name} {what}", hint=hint)
    return None


def _cached(name: str, plan: ComponentPlan) -> Path | None:
    """The folder of a hub component that was fetched before."""
    assert plan.hub_id is not None, plan
    repository = cached_snapshot(plan.hub_id, plan.revision)
    if repository is None:
        return None
    return repository / plan.subfolder if plan.subfolder else _within(name, repository)


def _check_class(name: str, path: str, config: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Raises RecipeError for a component of another class than the one the checkpoint names, where both are known."""
    entry = checkpoint.configs["index"].get(name)
    wanted = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    given = config.get("_class_name")
    if wanted is not None and given is not None and given != wanted:
        key = f"model.components.{name}"
        message = f"{key}: {path} is a {given}, and {checkpoint.model.name} takes a {wanted}"
        raise RecipeError([Problem(key, message)])

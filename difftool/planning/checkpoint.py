"""What planning can know of a model without loading it: its family, architecture numbers and own defaults."""

import difflib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from difftool.errors import Problem, RecipeError, WeightsError
from difftool.facts import CheckpointFacts, Configs, FamilyFacts, PipelineFacts
from difftool.families.index import all_families, code_family, family_sha256, native_family
from difftool.planning.foreign import FOREIGN_CHECKPOINTS, foreign_facts
from difftool.planning.foreign import NAME as FOREIGN
from difftool.planning.plan import ModelPlan
from difftool.recipe.running import Launch
from difftool.recipe.sampling import SamplingValues

BUILTIN = "builtin:"
OWN_DEFAULTS = "difftool.json"  # beside model_index.json: {"sampling": {...}, "launch": {"threads": N}}


@dataclass(frozen=True)
class Checkpoint:
    """One model as planning sees it. `configs` are the keys of its files, `defaults` the sampling values it brings.

    `threads` is the CPU thread count a checkpoint asks for: a tiny model's operators are too small to be split.
    """

    model: ModelPlan
    family: FamilyFacts
    configs: Configs
    defaults: Mapping[str, Any]
    defaults_origin: str
    threads: int | None = None

    @property
    def pipeline(self) -> PipelineFacts:
        return self.family.pipelines[self.model.pipeline_class]

    @property
    def sampling(self) -> Mapping[str, object]:
        """The sampling keys it knows, with the family's and its pipeline's defaults."""
        return {**self.family.sampling, **self.pipeline.sampling}

    @property
    def extra(self) -> Mapping[str, type]:
        """The further arguments it knows, with their types."""
        return {**self.family.extra, **self.pipeline.extra}

    @property
    def image_counts(self) -> tuple[int, int]:
        """How many condition pictures it takes, at least and at most."""
        return self.pipeline.image_counts(self.configs)

    @property
    def heads(self) -> int | None:
        """Attention heads of its transformer, where that is known."""
        heads: int | None = self.configs["transformer"].get(self.family.heads_key)
        return heads

    def understands(self, key: str) -> bool:
        """Whether a sampling key means something to it."""
        return self.family.understands(self.configs, key)


def builtin_models() -> list[str]:
    """Names after `builtin:` of the checkpoints that ship with difftool."""
    root = resources.files("difftool.builtin")
    return sorted(entry.name for entry in root.iterdir() if (entry / "model_index.json").is_file())


def find_checkpoint(
    path: str,
    model_id: str | None = None,
    revision: str | None = None,
    backend: str = "auto",
    code: str | None = None,
) -> Checkpoint:
    """Looks a recipe's model up. Raises RecipeError for a name nobody knows, WeightsError for a folder that is not one.

    A folder's `_class_name` chooses its family; `model_id` names known defaults for a renamed folder. `backend` says
    who runs it: a family (`native`), diffusers' own pipeline (`diffusers`), or the first of these that can (`auto`).
    `code` is the folder of an out-of-tree family, which then runs it.
    """
    found = _find(path, model_id, revision, code, partial(family_for, path, backend=backend, code=code))
    if found.model.backend != "native":
        return found
    digest = family_sha256(found.model.pipeline_class, code)
    return replace(found, model=found.model.model_copy(update={"code": code, "code_sha256": digest}))


def _find(
    path: str, model_id: str | None, revision: str | None, code: str | None, runs: Callable[[str], FamilyFacts]
) -> Checkpoint:
    """`runs` is the family of a pipeline class."""
    if why := _refused(model_id or path):
        raise RecipeError([Problem("model.path", f"model.path: {model_id or path} is {why}")])
    known = _known(model_id or path, code)
    if model_id is not None and known is None:
        raise RecipeError([Problem("model.id", f"model.id: no known model is named {model_id!r}{_nearest(model_id)}")])
    folder = Path(path).expanduser()
    if revision is not None and (path.startswith(BUILTIN) or folder.is_dir()):
        message = f"model.revision: it is for a hub repository, and {path} is on this disk; leave it out"
        raise RecipeError([Problem("model.revision", message)])
    if path.startswith(BUILTIN):
        return _from_folder(path, _builtin_folder(path), None, known, runs)
    if folder.is_dir():
        return _from_folder(path, folder.resolve(), None, known, runs)
    if path.startswith((".", "/", "~")) or path.count("/") != 1 or os.sep != "/" and os.sep in path:
        raise WeightsError(f"no model folder at {path}", hint="give a diffusers folder, a hub id or builtin:NAME")
    if cached := _cached_model(path, revision):
        return _from_folder(path, cached, path, known, runs, revision=revision)
    if known is None:
        raise RecipeError([Problem("model.path", f"model.path: no known model is named {path!r}{_nearest(path)}")])
    return _from_facts(path, revision, known, runs)


def checkpoint_folder(path: str, revision: str | None = None) -> Path | None:
    """Where a model's files lie on this machine; None where they do not. Raises RecipeError for an unknown built-in."""
    if path.startswith(BUILTIN):
        return _builtin_folder(path)
    folder = Path(path).expanduser()
    return folder.resolve() if folder.is_dir() else _cached_model(path, revision)


def _builtin_folder(path: str) -> Path:
    name = path.removeprefix(BUILTIN)
    if name not in builtin_models():
        raise RecipeError([Problem("model.path", _unknown_builtin(name))])
    return Path(str(resources.files("difftool.builtin") / name))


def read_model_index(folder: Path) -> dict[str, Any]:
    """A pipeline folder's model_index.json. Raises WeightsError for one that names no pipeline class."""
    index = read_json(folder / "model_index.json")
    if not isinstance(index.get("_class_name"), str):
        raise WeightsError(f"{folder / 'model_index.json'} names no pipeline class (_class_name)")
    return index


def _known(name: str, code: str | None) -> CheckpointFacts | None:
    own = code_family(code).checkpoints if code is not None else ()
    return next((c for c in [*own, *known_checkpoints()] if c.hub_id.lower() == name.lower()), None)


def _refused(name: str) -> str | None:
    return next((why for f in all_families() for c, why in f.refused.items() if c.lower() == name.lower()), None)


def known_checkpoints() -> list[CheckpointFacts]:
    """Every published checkpoint that is known by name: the families' own, then those that diffusers runs."""
    return [*(c for f in all_families() for c in f.checkpoints), *FOREIGN_CHECKPOINTS]


def family_for(path: str, pipeline_class: str, *, backend: str, code: str | None = None) -> FamilyFacts:
    """The facts that a pipeline class is run by. Raises RecipeError where `backend` or `code` cannot."""
    if code is not None:
        return _own_family(path, pipeline_class, backend, code)
    native = native_family(pipeline_class) if backend != "diffusers" else None
    if native is not None:
        return native
    foreign = foreign_facts(pipeline_class) if backend != "native" else None
    if foreign is not None:
        return foreign
    what = f"model.path: {path} is a {pipeline_class}"
    if backend == "native":
        classes = [c for f in all_families() for c in f.pipelines]
        close = difflib.get_close_matches(pipeline_class, classes, n=2, cutoff=0.5) or classes
        message = f"{what}, which no family runs natively; {', '.join(close)} would; use backend: diffusers"
    else:
        message = f"{what}, of which the installed diffusers has no pipeline that makes pictures or videos"
    raise RecipeError([Problem("model.path", message)])


def _own_family(path: str, pipeline_class: str, backend: str, code: str) -> FamilyFacts:
    if backend == "diffusers":
        message = "model.code: a family of your own runs natively; leave out backend: diffusers"
        raise RecipeError([Problem("model.code", message)])
    facts = code_family(code)
    if pipeline_class not in facts.pipelines:
        runs = ", ".join(facts.pipelines)
        message = f"model.code: the family {facts.name} runs {runs}, and {path} is {pipeline_class}"
        raise RecipeError([Problem("model.code", message)])
    return facts


def _nearest(name: str) -> str:
    every = [c.hub_id for c in known_checkpoints()] + [BUILTIN + n for n in builtin_models()]
    close = difflib.get_close_matches(name, every, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(every)}"


def _unknown_builtin(name: str) -> str:
    names = builtin_models()
    return f"model.path: no built-in model is named {name!r}; there is {', '.join(BUILTIN + n for n in names)}"


def _cached_model(hub_id: str, revision: str | None) -> Path | None:
    """The hub cache's folder of a pipeline that was fetched before."""
    snapshot = cached_snapshot(hub_id, revision)
    return snapshot if snapshot is not None and (snapshot / "model_index.json").is_file() else None


def cached_snapshot(hub_id: str, revision: str | None) -> Path | None:
    """The hub cache's folder of a repository, of which all or parts were fetched. Source: its layout's description."""
    home = os.environ.get("HF_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    root = Path(os.environ.get("HF_HUB_CACHE", os.path.join(home, "hub"))).expanduser()
    repo = root / f"models--{hub_id.replace('/', '--')}"
    reference = repo / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision or ""
    snapshot = repo / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def _from_facts(
    path: str, revision: str | None, facts: CheckpointFacts, runs: Callable[[str], FamilyFacts]
) -> Checkpoint:
    family = runs(facts.pipeline_class)
    model = ModelPlan(
        name=path,
        hub_id=facts.hub_id,
        folder=None,
        revision=revision,
        family=family.name,
        pipeline_class=facts.pipeline_class,
        builtin=False,
        backend="diffusers" if family.name == FOREIGN else "native",
    )
    return Checkpoint(model, family, facts.configs, facts.sampling, f"model {facts.hub_id}")


def _from_folder(
    path: str,
    folder: Path,
    hub_id: str | None,
    known: CheckpointFacts | None,
    runs: Callable[[str], FamilyFacts],
    *,
    revision: str | None = None,
) -> Checkpoint:
    """A checkpoint on this disk. A hub model keeps its id: the worker completes what the cache may lack."""
    index = read_model_index(folder)
    family = runs(index["_class_name"])
    builtin = path.startswith(BUILTIN)
    model = ModelPlan(
        name=path,
        hub_id=hub_id,
        folder=None if builtin or hub_id else str(folder),
        revision=revision,
        family=family.name,
        pipeline_class=index["_class_name"],
        builtin=builtin,
        backend="diffusers" if family.name == FOREIGN else "native",
    )
    own, threads = _own_defaults(folder / OWN_DEFAULTS)
    defaults = {**(known.sampling if known else {}), **own}
    origin = f"model {known.hub_id}" if known and not own else "the checkpoint"
    return Checkpoint(model, family, read_configs(folder, index), defaults, origin, threads)


def read_configs(folder: Path, index: Mapping[str, Any]) -> Configs:
    """What planning reads of a folder's config files; a part that is not on the disk is empty."""
    files = {part: folder / part / "config.json" for part in ("transformer", "vae")}
    return {"index": index, **{part: read_json(file) if file.is_file() else {} for part, file in files.items()}}


def _own_defaults(path: Path) -> tuple[dict[str, Any], int | None]:
    """Sampling values and CPU threads that a checkpoint asks for, typed as in a recipe. Raises WeightsError."""
    if not path.is_file():
        return {}, None
    content = read_json(path)
    try:
        sampling = SamplingValues.model_validate(content.get("sampling", {}))
        launch = Launch.model_validate(content.get("launch", {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WeightsError(f"{path}: {where}: {first['msg']}", hint="its keys are those of a recipe") from None
    given = sampling.model_dump(mode="json", include=sampling.model_fields_set)
    return given, launch.threads if isinstance(launch.threads, int) else None


def read_json(path: Path) -> dict[str, Any]:
    """The mapping of a checkpoint's JSON file. Raises WeightsError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path.parent} has no {path.name}", hint="a diffusers pipeline folder has one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path} does not hold a mapping")
    return content

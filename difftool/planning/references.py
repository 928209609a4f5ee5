"""What the outputs of a run are compared with: a file for every item, and the recipe of the run that makes them."""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from difftool.errors import Problem, RecipeError
from difftool.planning.judges import check_judges
from difftool.planning.naming import reserve
from difftool.planning.plan import Plan, QualityPlan
from difftool.planning.todo import raw_file
from difftool.recipe.overrides import Override

FOLDER = ".difftool/references"  # below output.dir, beside the records of the runs
SUFFIXES = (".npz", ".png")  # what holds every pixel as it was made; raw values first
VERSIONS = ("difftool", "torch", "diffusers")  # what can change a picture
OF_THIS_RUN = ("quality", "sweep", "perf", "output")  # what a reference is not made with
BY_NAME = {"cache.backend": "none"}  # what is set for it waits only where it is none by name
WITHOUT, DIR = "quality.reference.without", "quality.reference.dir"
SHOWN = 3


def quality_problems(quality: Mapping[str, Any], made: str) -> list[Problem]:
    """What a recipe's `quality` section has against it before anything is looked up."""
    scored = any(quality["metrics"].values())
    if quality["tier"] == "none" and quality["reference"] is None and not scored:
        return []
    if made == "audio":
        message = "quality: tiers, references and metrics are for pictures and videos, and this makes sound"
        return [Problem("quality", message)]
    if quality["reference"] is None and quality["metrics"]["lpips"] is not None:
        message = "quality.metrics.lpips compares with a reference; give quality.reference"
        return [Problem("quality.metrics.lpips", f"{message}: {{without: [keys]}} or {{dir: folder}}")]
    if quality["reference"] is None and quality["tier"] != "none":
        message = f"quality.tier={quality['tier']} needs something to compare with; give quality.reference"
        return [Problem("quality.tier", f"{message}: {{without: [keys]}} or {{dir: folder}}")]
    return []


def without_keys(keys: Sequence[str]) -> list[Override]:
    """What puts these recipe keys, and what only concerns the run itself, back to their defaults."""
    return [Override(key, BY_NAME.get(key), f"{WITHOUT} {key}") for key in (*keys, *OF_THIS_RUN)]


def plan_quality(plan: Plan, reference: Callable[[], Plan]) -> QualityPlan:
    """The `quality` of a plan; `reference()` is the plan of the same recipe without the keys that it names.

    Raises RecipeError where that makes other items, and for a folder in which an item has no file; WeightsError for a
    model that is to score outputs and is not there.
    """
    asked = plan.recipe["quality"]
    source = asked["reference"]
    check_judges(asked["metrics"])
    said = QualityPlan(tier=asked["tier"], **asked["metrics"])
    if source is None or not plan.items:
        return said
    if source["dir"] is not None:
        words, files = f"the files in {source['dir']}", _files_in(Path(source["dir"]), plan)
        return said.model_copy(update={"reference": words, "files": files})
    twin = reference()
    if [_who(item) for item in twin.items] != [_who(item) for item in plan.items]:
        message = f"{WITHOUT}: [{', '.join(source['without'])}] leaves other prompts or seeds; outputs would not pair"
        raise RecipeError([Problem(WITHOUT, message)])
    folder = Path(plan.output.dir, FOLDER, _key(twin))
    found = {
        "reference": f"the same recipe without {', '.join(source['without'])}",
        "files": tuple(str(raw_file(str(folder), position)) for position in range(len(plan.items))),
        "recipe": twin.recipe,
    }
    return said.model_copy(update=found)


def _who(item: Any) -> tuple[object, ...]:
    return item.prompt, item.seed, item.output


def _files_in(folder: Path, plan: Plan) -> tuple[str, ...]:
    """The file of every item: it has the name that the recipe's own template gives to the item."""
    output = plan.output.model_copy(update={"dir": str(folder), "file": None, "on_collision": "overwrite"})
    stems = [folder / Path(name).with_suffix("") for name in reserve(plan.model_copy(update={"output": output}), "")]
    found = [next((file for file in _with_suffixes(stem) if file.is_file()), None) for stem in stems]
    missing = [
        f"{stem.name}.npz or .png for item {item.id}"
        for stem, file, item in zip(stems, found, plan.items, strict=True)
        if file is None
    ]
    if missing:
        more = f", and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        message = f"{DIR}: {folder} has no {', no '.join(missing[:SHOWN])}{more}"
        hint = f"make them with the recipe to compare with: difftool generate RECIPE --return-frames -o {folder}/"
        raise RecipeError([Problem(DIR, message)], hint=hint)
    return tuple(str(file) for file in found)


def _with_suffixes(stem: Path) -> list[Path]:
    return [stem.with_name(stem.name + suffix) for suffix in SUFFIXES]


def _key(twin: Plan) -> str:
    """Names all that decides the pixels of a reference: equal ones are made once."""
    sources = [twin.model.folder, *(part.folder or part.file for part in twin.model.components.values())]
    content = {
        "recipe": twin.recipe_sha256,
        "items": [[*_who(item)] for item in twin.items],
        "machine": [platform.node(), twin.device, twin.threads],
        "versions": [metadata.version(name) for name in VERSIONS],
        "weights": [entry for source in sources if source is not None for entry in _listed(Path(source))],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _listed(source: Path) -> Iterator[tuple[str, int, int]]:
    """Every file of a checkpoint with its size and time of change: other weights in the same place are other ones."""
    for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
        if file.is_file():
            facts = file.stat()
            yield str(file), facts.st_size, facts.st_mtime_ns

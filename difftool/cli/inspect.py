"""`difftool inspect`: what a file that difftool wrote says of its making."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from difftool.cli.panels import PanelCommand
from difftool.cli.usage import UsageError
from difftool.errors import RecipeError

MAX_DUMP = 64 * 1024 * 1024
UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029]")  # a terminal obeys some of them; YAML reads them escaped
PACKAGES = ("torch", "diffusers")  # of a dump's versions, those that a picture names too


@dataclass(frozen=True)
class Found:
    """A file's own account. `stages_ms` are medians; a medium has none."""

    kind: str
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0

    @property
    def seed(self) -> Any:
        sampling = self.recipe.get("sampling")
        return sampling.get("seed") if isinstance(sampling, Mapping) else None


def register(app: typer.Typer) -> None:
    app.command("inspect", cls=PanelCommand)(inspect)


def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a picture, video, sound or perf dump")],
    *,
    recipe: Annotated[bool, typer.Option("--recipe", help="print only the recipe")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Print the recipe, seed and versions inside an output file."""
    if recipe and as_json:
        raise UsageError("--recipe and --json exclude each other", hint="the JSON holds the recipe already")
    found = _read(Path(file).expanduser(), file)
    if as_json:
        print(json.dumps(_object(found, file)))
    elif recipe:
        print(_yaml(found.recipe), end="")
    else:
        print(*_head(found, file), "", _yaml(found.recipe), sep="\n", end="")


def _read(path: Path, name: str) -> Found:
    """Raises UsageError for a file that tells nothing."""
    from difftool.recipe.embedded import holds_media, read_embedded

    if not path.is_file():
        raise UsageError(f"{name}: there is no such file", hint="give a picture, video, sound or perf dump")
    if not holds_media(path):
        return _from_dump(path, name)
    try:
        inside = read_embedded(path, name)
    except RecipeError as error:
        problem = error.problems[0]
        raise UsageError(f"{problem.where}: {problem.message}", hint=error.hint) from error
    return Found(inside.kind, inside.recipe, inside.versions)


def _from_dump(path: Path, name: str) -> Found:
    from difftool.report.perf import read_perf

    try:
        if path.stat().st_size > MAX_DUMP:
            raise ValueError
        dump = read_perf(path)
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        hint = "difftool plan shows what a recipe file would run"
        raise UsageError(f"{name} is no picture, video, sound or perf dump", hint=hint) from error
    packages = dump.env.get("packages", {})
    versions = {"difftool": dump.run.difftool} | {key: packages[key] for key in PACKAGES if key in packages}
    medians = {key: dump.summary[key].median for key in (*dump.stages_ms, "total") if key in dump.summary}
    return Found(f"perf dump, {dump.status}", dump.recipe.resolved, versions, medians, len(dump.samples))


def _object(found: Found, name: str) -> dict[str, Any]:
    content = {"file": name, "kind": found.kind, "seed": found.seed, "versions": found.versions}
    stages = {"stages_ms": found.stages_ms} if found.stages_ms else {}
    return {**content, **stages, "recipe": found.recipe}


def _head(found: Found, name: str) -> list[str]:
    versions = ", ".join(f"{key} {value}" for key, value in found.versions.items())
    lines = [f"file      {name} ({found.kind})", f"seed      {found.seed}", f"versions  {versions}"]
    if found.stages_ms:
        title = "ms" if found.samples == 1 else f"ms, median of {found.samples}"
        names, numbers = max(map(len, found.stages_ms)), max(len(title), 10)
        lines += ["", f"{'stage':<{names}}  {title:>{numbers}}"]
        lines += [f"{key:<{names}}  {ms:>{numbers}.1f}" for key, ms in found.stages_ms.items()]
    return lines


def _yaml(recipe: Mapping[str, Any]) -> str:
    """As `plan --resolved` prints it, without asking whether this machine has the model."""
    from difftool.planning.render import render_recipe
    from difftool.recipe.schema import Recipe

    model = Recipe.model_validate({"model": "any"}).model_dump(mode="json", by_alias=True)
    text = render_recipe(_ordered(recipe, model), {})
    return UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _ordered(tree: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """The keys in the order of `model`, unknown ones last: inside a file they are sorted by name."""
    keys = sorted(tree, key=lambda key: list(model).index(key) if key in model else len(model))
    return {
        key: _ordered(tree[key], model[key])
        if isinstance(tree[key], Mapping) and isinstance(model.get(key), Mapping)
        else tree[key]
        for key in keys
    }

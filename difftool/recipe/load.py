"""From a recipe file, a mapping or a name to a validated recipe that knows where each of its values was written."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from difftool.errors import Problem, RecipeError
from difftool.recipe.checks import reference_faults, sweep_faults
from difftool.recipe.document import read_document, read_text
from difftool.recipe.embedded import holds_media, read_embedded
from difftool.recipe.explain import explain, is_misspelt, show
from difftool.recipe.fields import Choice
from difftool.recipe.flat import flat_to_sections, is_flat
from difftool.recipe.hints import nearest
from difftool.recipe.keys import ROOT, Shape
from difftool.recipe.lookup import builtin_recipes, resolve_source
from difftool.recipe.nodes import Fault, Key, Mark, Node, dotted, from_plain, plain, refuse
from difftool.recipe.overrides import Override, key_fault, override_node, parse_set
from difftool.recipe.schema import Recipe
from difftool.recipe.tidy import drop_nulls, merge, tidy, walk

__all__ = ["Loaded", "Override", "lay_over", "load_recipe", "parse_set"]

MAX_EXTENDS = 5
ARGUMENT = "argument"  # where a recipe stands that is no file
NOT_INHERITED = ("schema", "name", "extends")


@dataclass(frozen=True)
class Source:
    """A recipe before validation. `files` are the sources in the order in which their faults are reported."""

    root: Node
    files: tuple[str, ...]
    base: Path | None = None


@dataclass(frozen=True)
class Loaded:
    """A recipe and where it came from. Every path in it is absolute, except `output.dir`.

    `provenance`: `wan.yaml:9:3`, `--set a.b=1` or `--seed` for each value that was given; a key that is absent has its
    default. `positions`: the same with the sections, and with what is inside lists. `base` is the folder of the file
    and `name` its name as shown; None and "" without a file. `source` is all of it before validation.
    """

    recipe: Recipe
    provenance: Mapping[str, str]
    positions: Mapping[str, str]
    base: Path | None
    name: str
    source: Source

    def where(self, key: str) -> str:
        """The place of a dotted key or of its nearest given section; an empty text for a default."""
        while key:
            if key in self.positions:
                return self.positions[key]
            key = key.rpartition(".")[0]
        return ""


def load_recipe(source: str | Path | Mapping[str, object], overrides: Sequence[Override] = ()) -> Loaded:
    """Reads, merges and validates; a text is what RECIPE may be. Raises RecipeError with all problems in file order."""
    faults: list[Fault] = []
    found = resolve_source(source) if isinstance(source, str) else source
    read = _from_mapping(found, faults) if isinstance(found, Mapping) else _from_file(found, _label(found), (), faults)
    return _loaded(read, overrides, faults)


def lay_over(loaded: Loaded, overrides: Sequence[Override]) -> Loaded:
    """The same recipe with more overrides; no file is read again. Raises RecipeError with all problems."""
    return _loaded(loaded.source, overrides, [])


def _loaded(read: Source, overrides: Sequence[Override], faults: list[Fault]) -> Loaded:
    source = replace(read, root=_laid_over(read.root, overrides, faults))
    root = drop_nulls(source.root, ROOT)
    recipe = _validated(root, faults)
    if faults or recipe is None:
        raise RecipeError(_in_order(faults, (*read.files, *(override.origin for override in overrides))))
    provenance, positions = _places(root)
    return Loaded(recipe, provenance, positions, read.base, read.files[0] if read.base is not None else "", source)


def _label(path: Path) -> str:
    return f"builtin/{path.name}" if path in builtin_recipes().values() else str(path)


def _from_mapping(source: Mapping[str, object], faults: list[Fault]) -> Source:
    root = from_plain(source, Mark(ARGUMENT))
    return _extended(tidy(root, ROOT, Path.cwd(), faults), Source(root, (ARGUMENT,)), Path.cwd(), (), faults)


def _from_file(path: Path, label: str, chain: tuple[Path, ...], faults: list[Fault]) -> Source:
    """One file with everything that it extends. `chain` are the files that led here."""
    root = _from_medium(path, label) if holds_media(path) else _from_text(path, label, faults)
    base = path.absolute().parent
    root = tidy(root, ROOT, base, faults)
    return _extended(root, Source(root, (label,), base), base, (*chain, path.resolve()), faults)


def _from_medium(path: Path, label: str) -> Node:
    """The recipe inside a picture, video or sound; all of it stands at the file, which has no lines."""
    return from_plain(read_embedded(path, label).recipe, Mark(label))


def _from_text(path: Path, label: str, faults: list[Fault]) -> Node:
    document = read_document(read_text(path, label), label)
    faults += document.faults
    root = document.root
    if root is None or root.value is None:
        raise refuse(Mark(label), "the file is empty; the shortest recipe is 'model: NAME'")
    if not root.is_mapping:
        raise refuse(root.mark, f"a recipe is a mapping of keys to values, not {show(plain(root))}")
    return flat_to_sections(root, faults) if is_flat(root) else root


def _extended(root: Node, own: Source, base: Path, chain: tuple[Path, ...], faults: list[Fault]) -> Source:
    """`root` laid over the recipe that it extends."""
    extends = root.mapping.get("extends")
    if extends is None or not isinstance(extends.value, str):
        return Source(root, own.files, own.base)
    root = _without(root, ("extends",))
    path, label = _parent(extends.value, base, own.files[0])
    fault = _chain_fault(extends.value, path, chain)
    if fault is not None:
        faults.append(Fault(extends.mark, "extends", f"extends: {fault}"))
        return Source(root, own.files, own.base)
    assert path is not None, extends
    try:
        parent = _from_file(path, label, chain, faults)
    except RecipeError as error:
        raise RecipeError([*_in_order(faults, own.files), *error.problems], hint=error.hint) from None
    merged = merge(_without(parent.root, NOT_INHERITED), root, ROOT)
    return Source(merged, (*own.files, *parent.files), own.base)


def _parent(text: str, base: Path, child: str) -> tuple[Path | None, str]:
    """The file that `extends: text` means, and what it is called in messages."""
    path = base / os.path.expanduser(text)
    if path.exists():
        return path, os.path.normpath(os.path.join(os.path.dirname(child), os.path.expanduser(text)))
    builtin = builtin_recipes().get(text)
    return builtin, _label(builtin) if builtin is not None else ""


def _chain_fault(text: str, path: Path | None, chain: tuple[Path, ...]) -> str | None:
    if path is None:
        close = nearest(text, builtin_recipes())
        return f"no file and no built-in recipe {text!r}" + (f", did you mean {close!r}?" if close else "")
    if path.resolve() in chain:
        names = [step.name for step in (*chain[chain.index(path.resolve()) :], path)]
        return f"{' -> '.join(names)} is a cycle"
    return f"a chain of more than {MAX_EXTENDS} files" if len(chain) > MAX_EXTENDS else None


def _without(root: Node, keys: Sequence[str]) -> Node:
    return Node({k: child for k, child in root.mapping.items() if k not in keys}, root.mark, root.key)


def _laid_over(root: Node, overrides: Sequence[Override], faults: list[Fault]) -> Node:
    for override in overrides:
        message = key_fault(override.key)
        if message is not None:
            faults.append(Fault(Mark(override.origin), override.key, message))
            continue
        root = merge(root, tidy(override_node(override), ROOT, Path.cwd(), faults), ROOT)
    return root


def _validated(root: Node, faults: list[Fault]) -> Recipe | None:
    try:
        recipe = Recipe.model_validate(plain(root))
    except ValidationError as error:
        found = explain(error.errors(include_url=False), root)
        faults += [fault for fault in found if not is_misspelt(fault, faults)]
        return None
    faults += [*sweep_faults(root), *reference_faults(root)]
    return recipe


def _places(root: Node) -> tuple[dict[str, str], dict[str, str]]:
    """Provenance (values only) and positions (sections and the inside of lists too)."""
    provenance: dict[str, str] = {}
    positions: dict[str, str] = {}

    def visit(path: Key, node: Node, shape: Shape) -> None:
        key = dotted(path)
        if node.mark.line or not node.is_mapping or shape.free:  # not the sections that only overrides opened
            positions[key] = str(node.mark)
        is_choice = shape.section is not None and issubclass(shape.section, Choice)
        if (is_choice or shape.free or not node.is_mapping) and not any(part.isdecimal() for part in path):
            provenance[key] = str(node.mark)

    walk(root, ROOT, visit)
    return provenance, positions


def _in_order(faults: Sequence[Fault], sources: Sequence[str]) -> list[Problem]:
    """Source by source, each from top to bottom."""
    places = {source: place for place, source in reversed(list(enumerate(sources)))}

    def place(fault: Fault) -> tuple[int, int, int]:
        return places.get(fault.mark.source, len(places)), fault.mark.line, fault.mark.col

    return [fault.problem() for fault in dict.fromkeys(sorted(faults, key=place))]

"""Node trees by the schema: unknown keys out, plain forms expanded, paths made absolute; merging; dropping nulls."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from difftool.recipe.fields import FilePath, Section
from difftool.recipe.hints import unknown_field
from difftool.recipe.keys import Shape, expand
from difftool.recipe.nodes import Fault, Key, Node, dotted

LOCAL = ("./", "../", "~", ".\\", "..\\")


def tidy(node: Node, shape: Shape, base: Path, faults: list[Fault], path: Key = ()) -> Node:
    """`node` without the keys the schema does not know (each a fault), sections as mappings, paths under `base`."""
    if shape.free:
        return node
    if shape.section is not None:
        node = _expanded(node, shape.section)
    if node.is_mapping:
        return _tidy_mapping(node, shape, base, faults, path)
    if node.is_list and shape.item is not None:
        item = shape.item
        items = (tidy(child, item, base, faults, (*path, str(i))) for i, child in enumerate(node.items))
        return replace(node, value=tuple(items))
    if isinstance(node.value, str) and shape.file is not None:
        return replace(node, value=absolute(node.value, shape.file, base))
    return node


def _tidy_mapping(node: Node, shape: Shape, base: Path, faults: list[Fault], path: Key) -> Node:
    kept: dict[str, Node] = {}
    for key, child in node.mapping.items():
        inner = None if shape.section is None and shape.values is None else shape.step(key)
        if inner is not None:
            kept[key] = tidy(child, inner, base, faults, (*path, key))
        elif shape.section is None:
            kept[key] = child
        else:
            message = unknown_field((*path, key), shape.section, has_value=child.value is not None)
            faults.append(Fault(child.key, dotted((*path, key)), message))
    return replace(node, value=kept)


def _expanded(node: Node, section: type[Section]) -> Node:
    mapping: Mapping[str, object] | None = None if node.is_mapping or node.is_list else expand(section, node.value)
    if mapping is None:
        return node
    return replace(node, value={key: replace(node, value=value) for key, value in mapping.items()}, replaces=True)


def absolute(text: str, file: FilePath, base: Path) -> str:
    """A relative path under `base`. URLs, `-`, and hub ids where nothing lies at such a path stay as they are."""
    if text == "-" or "://" in text:
        return text
    expanded = os.path.expanduser(text)
    joined = os.path.normpath(os.path.join(base, expanded))
    if file.or_name and not text.startswith(LOCAL) and text not in (".", "..") and not os.path.exists(joined):
        return text
    return joined


def merge(base: Node, top: Node, shape: Shape) -> Node:
    """`top` over `base`: mappings merge, anything else replaces. A plain form such as `cache: none` replaces too."""
    if not (top.is_mapping and base.is_mapping) or top.replaces:
        return top
    merged = dict(_without_alternatives(base, top, shape).mapping)
    for key, child in top.mapping.items():
        inner = shape.step(key)
        merged[key] = merge(merged[key], child, inner) if key in merged and inner is not None else child
    mark = top.mark if top.mark.line else base.mark
    return replace(base, value=merged, mark=mark)


def _without_alternatives(base: Node, top: Node, shape: Shape) -> Node:
    """Without the keys that a key of `top` stands instead of: a prompt of `-p` replaces the file's `prompts`."""
    names: tuple[str, ...] = shape.section.alternatives if shape.section is not None else ()
    given = [name for name in names if name in top.mapping and top.mapping[name].value is not None]
    if not given:
        return base
    return replace(base, value={k: v for k, v in base.mapping.items() if k in given or k not in names})


def drop_nulls(node: Node, shape: Shape) -> Node:
    """Without the keys set to null: null means the default. In a free mapping it is a value and stays."""
    if shape.free:
        return node
    if node.is_list and shape.item is not None:
        return replace(node, value=tuple(drop_nulls(child, shape.item) for child in node.items))
    if not node.is_mapping:
        return node
    kept = {key: child for key, child in node.mapping.items() if child.value is not None}
    return replace(node, value={key: drop_nulls(child, shape.step(key) or Shape()) for key, child in kept.items()})


def walk(node: Node, shape: Shape, visit: Callable[[Key, Node, Shape], None], path: Key = ()) -> None:
    """Calls `visit` for every value below the top, outermost first; free mappings and plain lists are one value."""
    if path:
        visit(path, node, shape)
    if shape.free:
        return
    if node.is_mapping:
        for key, child in node.mapping.items():
            walk(child, shape.step(key) or Shape(), visit, (*path, key))
    elif node.is_list and shape.item is not None:
        for index, child in enumerate(node.items):
            walk(child, shape.item, visit, (*path, str(index)))

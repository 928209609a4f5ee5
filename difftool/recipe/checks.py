"""Checks of recipe keys that stand as values inside a recipe: `sweep.matrix` and `quality.reference.without`."""

from difftool.recipe.explain import describe
from difftool.recipe.hints import unknown_key
from difftool.recipe.keys import find, value_errors
from difftool.recipe.nodes import Fault, Key, Node, plain
from difftool.recipe.overrides import key_fault


def sweep_faults(root: Node) -> list[Fault]:
    """What the keys and values of `sweep.matrix` have against them."""
    faults: list[Fault] = []
    matrix = _at(root, ("sweep", "matrix"))
    for key, values in (matrix.mapping if matrix is not None else {}).items():
        message = key_fault(key)
        if message is not None:
            faults.append(Fault(values.key, f"sweep.matrix.{key}", f"sweep.matrix: {message}"))
            continue
        for value in values.items:
            errors = value_errors(tuple(key.split(".")), plain(value))
            if errors:
                message = f"sweep.matrix: {key}: {describe(errors[0])}"
                faults.append(Fault(value.mark, f"sweep.matrix.{key}", message))
    return faults


def reference_faults(root: Node) -> list[Fault]:
    """What the keys of `quality.reference.without` have against them."""
    without = _at(root, ("quality", "reference", "without"))
    names = [(item, str(item.value)) for item in (without.items if without is not None else ())]
    return [
        Fault(item.mark, "quality.reference.without", f"quality.reference.without: {unknown_key(name)}")
        for item, name in names
        if find(tuple(name.split("."))) is None
    ]


def _at(root: Node, path: Key) -> Node | None:
    node: Node | None = root
    for key in path:
        node = node.mapping.get(key) if node is not None and node.is_mapping else None
    return node

"""The names under which a recorded run shows its parts: stages, steps, blocks of the models, and collectives.

`stage: denoising`, `step: 3`, `block: transformer.transformer_blocks.0`, `collective: ulysses all_to_all`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from difftool.parallel.mesh import Mesh, OpenRange

STAGE, STEP, BLOCK, COLLECTIVE = "stage: ", "step: ", "block: ", "collective: "


@contextmanager
def named_parts(modules: Mapping[str, Any], mesh: Mesh, open_range: OpenRange) -> Iterator[None]:
    """Every block and every collective runs in a range of its name."""
    with mesh.recorded(lambda name: open_range(COLLECTIVE + name)), _named_blocks(modules, open_range):
        yield


@contextmanager
def _named_blocks(modules: Mapping[str, Any], open_range: OpenRange) -> Iterator[None]:
    """A block is a member of a module list; lists inside its members are left out."""
    handles, opened = [], list[Any]()

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            opened.append(open_range(BLOCK + name))
            opened[-1].__enter__()

        return hook

    def leave(*_: object) -> None:
        opened.pop().__exit__(None, None, None)

    for component, module in modules.items():
        for name, block in _blocks(module, component) if isinstance(module, nn.Module) else ():
            handles += [block.register_forward_pre_hook(enter(name)), block.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        while opened:  # of a block that failed
            leave()


def _blocks(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    for child_name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            members = ((f"{name}.{child_name}.{i}", member) for i, member in enumerate(child))
            yield from (pair for pair in members if pair[1] is not None)
        else:
            yield from _blocks(child, f"{name}.{child_name}")

"""The blocks that a model repeats, for transforms that work on one of them at a time."""

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

Chain = Mapping[str, nn.Module]


def block_chains(model: nn.Module, lists: Sequence[str] = ()) -> list[Chain]:
    """Blocks by path, in the order in which they run: those of the module `lists`, one list after the other.

    Without `lists` every module list that is in no other is a chain of its own, as in models that no family describes.
    """
    found = {path: model.get_submodule(path) for path in lists} or dict(_outermost(model, ""))
    chains = [{f"{path}.{name}": block for name, block in blocks.named_children()} for path, blocks in found.items()]
    return [{path: block for chain in chains for path, block in chain.items()}] if lists else chains


def _outermost(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The module lists below a module, without those inside them."""
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList):
            yield below, child
        else:
            yield from _outermost(child, below)

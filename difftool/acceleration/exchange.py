"""A module of ours in the place of a denoiser's block list while the denoiser runs: no forward is copied."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn


class Exchange:
    """Between forwards the lists are what they always are: others reach the blocks by their names."""

    def __init__(self, transformer: nn.Module, stand_ins: Mapping[str, nn.Module]):
        """`stand_ins` by the path of the list; each is called where the denoiser calls the blocks."""
        self.stand_ins = stand_ins
        self._found = {key: transformer.get_submodule(key) for key in stand_ins}
        self._lists = {key: nn.ModuleList([module]) for key, module in stand_ins.items()}
        self._handles = [
            transformer.register_forward_pre_hook(lambda module, _: _set(module, self._lists)),
            transformer.register_forward_hook(lambda module, *_: _set(module, self._found), always_call=True),
        ]

    def remove(self) -> None:
        """The lists stay what they are."""
        for handle in self._handles:
            handle.remove()


def _set(transformer: nn.Module, lists: Mapping[str, nn.Module]) -> None:
    for key, blocks in lists.items():
        owner, _, last = key.rpartition(".")
        setattr(transformer.get_submodule(owner), last, blocks)


class Counted(nn.Module):
    """A block that says when it runs."""

    def __init__(self, block: nn.Module, count: Callable[[], None]):
        super().__init__()
        self.block, self._count = block, count

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._count()
        return self.block(*args, **kwargs)

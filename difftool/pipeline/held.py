"""Modules of a denoiser that answer the same at every step, computed once."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn


class Held(nn.Module):
    """Stands in for a module during a loop: its answer, made once, is the same whatever it is given."""

    def __init__(self, answer: Any):
        super().__init__()
        self.answer = answer

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.answer


class Remembered(nn.Module):
    """Stands in for a module during a loop: what it has been given before is answered as before.

    `key` says of the arguments what the answer depends on; by default that is the one tensor given, not a copy of it.
    """

    def __init__(self, module: nn.Module, key: Callable[..., Hashable] = id):
        super().__init__()
        self.module, self.key = module, key
        self.answers: dict[Hashable, tuple[Any, Any]] = {}

    @torch.compiler.disable  # what it remembers changes with every request, and a graph is of one state
    def forward(self, *given: Any, **named: Any) -> Any:
        key = self.key(*given, **named)
        if key not in self.answers:
            # a tensor is kept, or its id could come to name another
            self.answers[key] = given, self.module(*given, **named)
        return self.answers[key][1]


@contextmanager
def replaced(owner: nn.Module, **others: nn.Module) -> Iterator[None]:
    """Within, the named submodules of `owner` are these."""
    modules = {name: getattr(owner, name) for name in others}
    try:
        for name, other in others.items():
            setattr(owner, name, other)
        yield
    finally:
        for name, module in modules.items():
            setattr(owner, name, module)


def remembered(owner: nn.Module, name: str) -> AbstractContextManager[None]:
    """Within, the named submodule of `owner` computes once for each tensor it is given."""
    return replaced(owner, **{name: Remembered(getattr(owner, name))})

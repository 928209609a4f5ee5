"""The loaded modules of a checkpoint, by their model_index.json names."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Components:
    """`modules` by name; `holder` is the diffusers pipeline object that owns them and lends its helper methods.

    `later` are readers of those that nothing may ask for: None in `modules` until `bring` reads them.
    """

    modules: dict[str, Any]
    holder: Any
    later: dict[str, Callable[[], Any]] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.modules[name]
        except KeyError:
            raise AttributeError(f"no component {name!r}; loaded: {', '.join(self.modules)}") from None

    def bring(self) -> None:
        """Reads what was put off."""
        while self.later:
            name, read = self.later.popitem()
            self.modules[name] = read()
            setattr(self.holder, name, self.modules[name])

    def weight_bytes(self) -> int:
        """Of all parameters that lie on this rank and do not wait elsewhere, each counted once."""
        modules = [module for module in self.modules.values() if isinstance(module, nn.Module)]
        held = {id(parameter): parameter for module in modules for parameter in module.parameters()}
        return sum(own_part(parameter).nbytes for parameter in held.values())


def own_part(tensor: Tensor) -> Tensor:
    """What of a tensor lies on this rank: all of it, or its rows of one that several ranks keep together."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor

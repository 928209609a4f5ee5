"""The loaded modules of a checkpoint, by their model_index.json names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Components:
    """`modules` by name; `holder` is the diffusers pipeline object that owns them and lends its helper methods."""

    modules: Mapping[str, Any]
    holder: Any

    def __getattr__(self, name: str) -> Any:
        try:
            return self.modules[name]
        except KeyError:
            raise AttributeError(f"no component {name!r}; loaded: {', '.join(self.modules)}") from None

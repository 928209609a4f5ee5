"""What the conformance suite knows of one tiny checkpoint."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image

from difftool.media.condition import Picture
from difftool.pipeline.batch import Batch


def no_arguments(batch: Batch) -> dict[str, Any]:
    return {}


def nothing(folder: Path) -> dict[str, Any]:
    return {}


def itself(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    return pipeline


@dataclass(frozen=True)
class Case:
    """One tiny checkpoint of a family and pipeline class.

    `request` are batch fields that fit it; `requests` further ones by name, checked beside the common ones.
    `tolerance` is how far pixels and latents may be from the stock pipeline's, `why` the arithmetic that differs.
    `batches` is false where the stock pipeline takes one prompt at a time. `reference` makes the stock pipeline to
    compare with from the built one, where another class does what is asked; `arguments` are what its call takes under
    names of its own. `given` are the components that the stock pipeline cannot load here from a saved checkpoint and
    is given. `fewest_steps` is how many its schedule has at least, `steps` how many it always has.
    """

    name: str
    family: str
    pipeline_class: str
    build: Callable[[], DiffusionPipeline]
    request: Mapping[str, Any] = field(default_factory=dict)
    requests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tolerance: float = 0.0
    why: str = ""
    batches: bool = True
    reference: Callable[[DiffusionPipeline], DiffusionPipeline] = itself
    arguments: Callable[[Batch], dict[str, Any]] = no_arguments
    given: Callable[[Path], Mapping[str, Any]] = nothing
    waits: str = ""
    fewest_steps: int = 1
    steps: int | None = None

    def __post_init__(self) -> None:
        assert bool(self.tolerance) == bool(self.why), f"{self.name}: a tolerance has a reason"


def picture(width: int, height: int, seed: int = 0) -> Picture:
    """Coloured gradients, different for each seed."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * (seed + 2) + columns, columns * 3 + seed * 40, (rows + columns) * 2]
    image = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
    return Picture(image, hashlib.sha256(image.tobytes()).hexdigest())

"""LPIPS with AlexNet, version 0.1: how different two pictures look, by features whose weights people's answers fitted.

Source: Zhang et al. 2018, The Unreasonable Effectiveness of Deep Features as a Perceptual Metric; the layers, names and
constants are those of the package lpips 0.1.4, whose state is read from one safetensors file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from difftool.components.check import check_safetensors
from difftool.components.fit import FLOATS
from difftool.errors import WeightsError

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of values in [-1, 1], by channel
LEAST_SIDE = 31  # the second pooling still has a window
TINY = 1e-10  # added to the length of a feature


@dataclass(frozen=True)
class Layer:
    """One convolution of AlexNet with its ReLU; `pooled`: after a maximum over 3 x 3, every second one."""

    name: str
    shape: tuple[int, int, int, int]
    stride: int
    padding: int
    pooled: bool


LAYERS = (
    Layer("net.slice1.0", (64, 3, 11, 11), 4, 2, False),
    Layer("net.slice2.3", (192, 64, 5, 5), 1, 2, True),
    Layer("net.slice3.6", (384, 192, 3, 3), 1, 1, True),
    Layer("net.slice4.8", (256, 384, 3, 3), 1, 1, False),
    Layer("net.slice5.10", (256, 256, 3, 3), 1, 1, False),
)


def read_lpips(file: Path) -> Callable[[], Callable[[Tensor, Tensor], float]]:
    """A function that reads the file and gives the distance of two pictures, [3, H, W] in [0, 1], sides of 31 at least.

    Raises WeightsError where the file does not hold LPIPS with AlexNet.
    """
    stored = check_safetensors(file)
    names = {name: _stored_name(name, stored) for name in _wanted()}
    for name, shape in _wanted().items():
        found = stored.get(names[name])
        if found is None or found.shape != shape or found.dtype not in FLOATS:
            raise WeightsError(
                f"{file} is no LPIPS with AlexNet: it has no {name} of shape {[*shape]}",
                hint="save the state of lpips.LPIPS(net='alex')",
            )

    def read() -> Callable[[Tensor, Tensor], float]:
        tensors = load_file(file)
        return partial(_distance, {name: tensors[source].float() for name, source in names.items()})

    return read


def _wanted() -> dict[str, tuple[int, ...]]:
    """The shapes of all weights that are used, by name."""
    found: dict[str, tuple[int, ...]] = {}
    for number, layer in enumerate(LAYERS):
        found |= {f"{layer.name}.weight": layer.shape, f"{layer.name}.bias": layer.shape[:1]}
        found[f"lin{number}.model.1.weight"] = (1, layer.shape[0], 1, 1)
    return found


def _stored_name(name: str, stored: Mapping[str, object]) -> str:
    """The package holds the linear layers under two names, and a file of shared tensors keeps either."""
    other = name.replace("lin", "lins.", 1) if name.startswith("lin") else name
    return name if name in stored else other


def _distance(weights: Mapping[str, Tensor], made: Tensor, reference: Tensor) -> float:
    pair = _scaled(torch.stack((made, reference)).float())
    found = 0.0
    for number, layer in enumerate(LAYERS):
        if layer.pooled:
            pair = F.max_pool2d(pair, kernel_size=3, stride=2)
        bias = weights[f"{layer.name}.bias"]
        pair = F.conv2d(pair, weights[f"{layer.name}.weight"], bias, layer.stride, layer.padding).relu()
        directions = pair / (pair.square().sum(1, keepdim=True).sqrt() + TINY)
        difference = (directions[:1] - directions[1:]).square()
        found += float(F.conv2d(difference, weights[f"lin{number}.model.1.weight"]).mean())
    return found


def _scaled(pixels: Tensor) -> Tensor:
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (SHIFT, SCALE))
    return (2 * pixels - 1 - shift) / scale

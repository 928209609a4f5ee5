"""Raw values, as the worker leaves them in an NPZ: rounded to bytes, and read back as pictures. Needs no torch."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def to_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[C, ..., H, W] in [0, 1] -> [..., H, W, C], rounded to nearest as diffusers does."""
    return (np.moveaxis(values, 0, -1) * 255).round().astype(np.uint8)


def read_raw(path: Path) -> Image.Image | list[Image.Image]:
    """The `pixels` of an NPZ: [C, H, W] -> a picture; [C, F, H, W] -> a list of them, one for each frame."""
    with np.load(path) as file:
        data = to_bytes(file["pixels"])
    return Image.fromarray(data) if data.ndim == 3 else [Image.fromarray(frame) for frame in data]

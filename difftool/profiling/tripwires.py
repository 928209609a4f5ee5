"""What no picture or video should be, whatever it is compared with: the signs that something broke on the way.

Pixels are [C, H, W] or [C, F, H, W] in [0, 1], sound is [C, T].
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

FLAT = 2 / 255  # two steps of an 8-bit file, which nobody sees
SPREAD = 0.05  # standard deviation below which grain on a plain picture is no noise
LIKENESS = 0.5  # correlation of neighbours: what is drawn has 0.8 and more, white noise none


def find_tripwires(made: Tensor, sampling: Mapping[str, Any]) -> list[str]:
    """Those that an item fails, of `nan`, `size`, `frames`, `black`, `constant` and `noise`, in this order.

    Size and frames are held against `sampling`, where that asks for some. A video is black, constant or noise where
    most of its frames are: it may fade in.
    """
    found = [] if bool(torch.isfinite(made).all()) else ["nan"]
    if made.ndim > 2:
        found += _wrong_shape(made, sampling)
    if "nan" in found:  # nothing that follows can be said
        return found
    frames = made.float().cpu().movedim(1, 0) if made.ndim == 4 else made.float().cpu()[None]
    kinds = [next((name for name, fails in FRAME_CHECKS.items() if fails(frame)), None) for frame in frames]
    return found + [name for name in FRAME_CHECKS if 2 * kinds.count(name) > len(kinds)]


def _wrong_shape(made: Tensor, sampling: Mapping[str, Any]) -> list[str]:
    asked = [sampling.get(key) for key in ("height", "width")]
    sides = any(one is not None and one != side for one, side in zip(asked, made.shape[-2:], strict=True))
    frames, count = sampling.get("num_frames"), made.shape[1] if made.ndim == 4 else 1
    return [*(["size"] if sides else []), *(["frames"] if frames is not None and frames != count else [])]


def _is_black(frame: Tensor) -> bool:
    return frame.ndim == 3 and float(frame.max()) < FLAT


def _is_constant(frame: Tensor) -> bool:
    values = frame.flatten(1)
    return float((values.amax(1) - values.amin(1)).max()) < FLAT


def _is_noise(frame: Tensor) -> bool:
    """Whether neighbours have next to nothing in common, across and down: 1 - E[(a - b)²] / 2 var is how much."""
    if frame.ndim < 3 or min(frame.shape[-2:]) < 2:
        return False
    values = frame.double() - frame.double().mean((1, 2), keepdim=True)
    variance = float(values.square().mean())
    across, down = values.diff(dim=2).square().mean(), values.diff(dim=1).square().mean()
    return variance > SPREAD**2 and 1 - float(torch.minimum(across, down)) / (2 * variance) < LIKENESS


FRAME_CHECKS: Mapping[str, Callable[[Tensor], bool]] = {
    "black": _is_black,
    "constant": _is_constant,
    "noise": _is_noise,
}

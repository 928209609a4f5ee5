"""How alike two pictures or videos are: PSNR, SSIM and MS-SSIM.

Pixels are [C, H, W] or [C, F, H, W] in [0, 1]: channels, frames, height, width. Both of a pair have the same shape.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # of the Gaussian
C1, C2 = 0.01**2, 0.03**2  # for values that span 1
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
LEAST_SIDE = WINDOW
LEAST_SIDE_OF_SCALES = (WINDOW - 1) * 2 ** (len(SCALE_WEIGHTS) - 1) + 1  # the coarsest scale still holds a window


def psnr(made: Tensor, reference: Tensor) -> float | None:
    """Peak signal-to-noise ratio in dB, of all pixels together; None where the two are equal."""
    error = float((made.double() - reference.double()).square().mean())
    return float(-10 * torch.log10(torch.tensor(error, dtype=torch.float64))) if error else None


def ssim(made: Tensor, reference: Tensor) -> float | None:
    """Structural similarity, the mean over frames and channels; None for a side below 11 pixels.

    Source: Wang et al. 2004, Image Quality Assessment: from Error Visibility to Structural Similarity, 3.
    """
    if min(made.shape[-2:]) < LEAST_SIDE:
        return None
    return _mean([float(_maps(*pair)[0].mean()) for pair in _frames(made, reference)])


def ms_ssim(made: Tensor, reference: Tensor) -> float | None:
    """The same over five scales, each half of the one before; None for a side below 161 pixels.

    Source: Wang et al. 2003, Multi-Scale Structural Similarity for Image Quality Assessment.
    """
    if min(made.shape[-2:]) < LEAST_SIDE_OF_SCALES:
        return None
    return _mean([_over_scales(*pair) for pair in _frames(made, reference)])


def _over_scales(made: Tensor, reference: Tensor) -> float:
    """One frame, [C, 1, H, W]: contrast and structure at every scale, and luminance at the coarsest."""
    product = torch.ones(made.shape[0], dtype=made.dtype)
    for number, weight in enumerate(SCALE_WEIGHTS):
        if number:
            made, reference = (
                F.avg_pool2d(one, 2, padding=[s % 2 for s in one.shape[-2:]]) for one in (made, reference)
            )
        whole, contrast = _maps(made, reference)
        counted = whole if number == len(SCALE_WEIGHTS) - 1 else contrast
        product *= counted.mean(dim=(1, 2, 3)).clamp(min=0) ** weight  # a negative one has no power
    return float(product.mean())


def _maps(made: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """[C, 1, H, W] pairs -> SSIM, and its contrast and structure alone, wherever the whole window fits."""
    a, b = _blurred(made), _blurred(reference)
    variances = _blurred(made * made) - a * a + _blurred(reference * reference) - b * b
    contrast = (2 * (_blurred(made * reference) - a * b) + C2) / (variances + C2)
    return (2 * a * b + C1) / (a * a + b * b + C1) * contrast, contrast


def _blurred(values: Tensor) -> Tensor:
    places = torch.arange(WINDOW, dtype=values.dtype) - WINDOW // 2
    weights = torch.exp(-places.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    return F.conv2d(F.conv2d(values, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))


def _frames(made: Tensor, reference: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of [C, 1, H, W] in double precision, frame by frame: a video need not fit twice."""
    made, reference = (one if one.ndim == 4 else one.unsqueeze(1) for one in (made, reference))
    for frame in range(made.shape[1]):
        yield made[:, frame, None].double(), reference[:, frame, None].double()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)

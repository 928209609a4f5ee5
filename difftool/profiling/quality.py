"""Looks at what an item made: beside its reference, for what no picture should be, and for what its prompt says."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from difftool.builtin.checker import shows_prompt
from difftool.media.writer import to_uint8
from difftool.planning.plan import Plan
from difftool.profiling.judges import Judge
from difftool.profiling.similarity import LEAST_SIDE, LEAST_SIDE_OF_SCALES, ms_ssim, psnr, ssim
from difftool.profiling.tripwires import find_tripwires
from difftool.report.perf import OutputQuality


def examine(plan: Plan, position: int, made: Tensor, judges: Sequence[Judge] = ()) -> OutputQuality:
    """What is to say of the output of one item: [C, H, W] or [C, F, H, W] in [0, 1], or sound."""
    item, files = plan.items[position], plan.quality.files
    found = OutputQuality(item=position, output=item.output, tripwires=find_tripwires(made, item.sampling))
    if "nan" in found.tripwires:
        return found.model_copy(update={"missing": ["it has values that are no numbers"]})
    if plan.model.builtin:
        found = found.model_copy(update={"right": shows_prompt(item.prompt, to_uint8(made))})
    made, reference = made.float().cpu(), None
    if files:
        found, made, reference = _compared(found, made, Path(files[position]))
    for judge in judges:
        scores = judge.score(made, reference, item.prompt)
        found = found.model_copy(update={**scores.values, "missing": [*found.missing, *scores.missing]})
    return found


def _compared(found: OutputQuality, made: Tensor, file: Path) -> tuple[OutputQuality, Tensor, Tensor | None]:
    """With how far it is from the reference, and the two as they are compared; what stops that is in `missing`, for it
    is no pass, and leaves no reference.
    """
    try:
        reference = read_reference(file)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        return found.model_copy(update={"missing": [f"{file} cannot be read: {error}"]}), made, None
    wired = [*found.tripwires, *_shape_tripwires(made, reference)]
    if made.shape != reference.shape:
        missing = [f"its shape is {[*made.shape]} and that of {file} {[*reference.shape]}"]
        told = {"tripwires": list(dict.fromkeys(wired)), "missing": missing}
        return found.model_copy(update=told), made, None
    if file.suffix == ".png":  # which holds bytes: those of the output are compared with them
        made = torch.round(made * 255) / 255
    values = {
        "max_abs": float((made - reference).abs().max()),
        "psnr": psnr(made, reference),
        "ssim": ssim(made, reference),
        "ms_ssim": ms_ssim(made, reference),
    }
    return found.model_copy(update={**values, "missing": _too_small(made)}), made, reference


def read_reference(file: Path) -> Tensor:
    """The `pixels` of an NPZ, or a PNG in RGB: float32 in [0, 1]. Raises OSError, ValueError, KeyError, BadZipFile."""
    if file.suffix == ".npz":
        with np.load(file) as content:
            pixels = torch.from_numpy(content["pixels"].astype(np.float32))
        if not bool(torch.isfinite(pixels).all()):
            raise ValueError("it has values that are no numbers")
        return pixels
    with Image.open(file) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).movedim(-1, 0) / 255


def _shape_tripwires(made: Tensor, reference: Tensor) -> list[str]:
    size, frames = made.shape[-2:] != reference.shape[-2:], made.shape[:-2] != reference.shape[:-2]
    return [*(["size"] if size else []), *(["frames"] if frames else [])]


def _too_small(made: Tensor) -> list[str]:
    least = {"ssim": LEAST_SIDE, "ms_ssim": LEAST_SIDE_OF_SCALES}
    return [f"{name} needs sides of {side} pixels" for name, side in least.items() if min(made.shape[-2:]) < side]

"""Models that score outputs, on the CPU: LPIPS beside the reference, CLIP beside the prompt and the reference.

Their files are checked before a run starts, and read when its first output is there. Pixels are [C, H, W] or
[C, F, H, W] in [0, 1]; the score of a video is the mean of its frames'.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from difftool.planning.plan import QualityPlan
from difftool.profiling.lpips import LEAST_SIDE, read_lpips

RGB = 3  # channels


@dataclass(frozen=True)
class Scores:
    """By the names of the dump. `missing` says what could not be computed, and why."""

    values: Mapping[str, float]
    missing: Sequence[str] = ()


class Judge(Protocol):
    """One model that scores outputs."""

    def score(self, made: Tensor, reference: Tensor | None, prompt: str) -> Scores:
        """`reference` has the shape of what was made; None where there is none, or none that can be compared."""


def open_judges(quality: QualityPlan) -> list[Judge]:
    """Those that a plan asks for. Raises WeightsError where their files do not hold them."""
    judges: list[Judge] = []
    if quality.lpips is not None:
        judges.append(LpipsJudge(Path(quality.lpips)))
    if quality.clip is not None:
        judges.append(ClipJudge(Path(quality.clip)))
    return judges


class LpipsJudge:
    """How different an output looks from its reference: 0 for equal ones."""

    def __init__(self, file: Path):
        self._read = read_lpips(file)

    @cached_property
    def _distance(self) -> Callable[[Tensor, Tensor], float]:
        return self._read()

    @torch.inference_mode()
    def score(self, made: Tensor, reference: Tensor | None, prompt: str) -> Scores:
        if made.shape[0] != RGB:
            return Scores({}, ["lpips sees pictures of three channels"])
        if reference is None:
            return Scores({}, ["lpips has no reference to compare with"])
        if min(made.shape[-2:]) < LEAST_SIDE:
            return Scores({}, [f"lpips needs sides of {LEAST_SIDE} pixels"])
        pairs = zip(_frames(made), _frames(reference), strict=True)
        return Scores({"lpips": _mean([self._distance(*pair) for pair in pairs])})


class ClipJudge:
    """The cosine of an output and its prompt, and that of an output and its reference, in CLIP's one space."""

    def __init__(self, folder: Path):
        from difftool.profiling.clip import ClipReader  # a second of imports, which few runs ask for

        self._reader = ClipReader(folder)

    @torch.inference_mode()
    def score(self, made: Tensor, reference: Tensor | None, prompt: str) -> Scores:
        if made.shape[0] != RGB:
            return Scores({}, ["clip sees pictures of three channels"])
        ours, text = self._embedded(made), self._reader.embed_text(prompt)
        values = {"clip": _mean([float(one @ text) for one in ours])}
        if reference is not None:
            theirs = self._embedded(reference)
            values["clip_image"] = _mean([float(a @ b) for a, b in zip(ours, theirs, strict=True)])
        return Scores(values)

    def _embedded(self, pixels: Tensor) -> list[Tensor]:
        return [self._reader.embed_picture(frame) for frame in _frames(pixels)]


def _frames(pixels: Tensor) -> Iterator[Tensor]:
    """[C, H, W], one after the other."""
    return iter(pixels[None] if pixels.ndim == 3 else pixels.movedim(1, 0))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)

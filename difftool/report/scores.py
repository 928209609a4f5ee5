"""What the outputs of two dumps are worth beside each other: numbers to look at, which decide nothing."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, get_args

from difftool.report.perf import Accuracy, Part, Quality

Name = Literal["psnr", "ssim", "ms_ssim", "max_abs", "lpips", "clip", "clip_image"]
NAMES: tuple[Name, ...] = get_args(Name)
WORST: Mapping[str, Callable[[Iterable[float]], float]] = {"max_abs": max, "lpips": max}  # of the others, the least


class Worth(Part):
    """One number of one dump: of its worst output, and of the middle one."""

    worst: float
    median: float


class Score(Part):
    """One number of both dumps; null where no output of that dump has it. `psnr` is in dB, of outputs that differ."""

    name: Name
    base: Worth | None
    new: Worth | None


class Shown(Part):
    """How many outputs of a built-in model show what their prompts say; null: that is not known of that dump."""

    base: Accuracy | None
    new: Accuracy | None


def list_scores(base: Quality | None, new: Quality | None) -> list[Score]:
    """Every number that either dump has."""
    found = [Score(name=name, base=_worth(base, name), new=_worth(new, name)) for name in NAMES]
    return [score for score in found if score.base or score.new]


def _worth(quality: Quality | None, name: str) -> Worth | None:
    outputs = quality.per_output if quality else []
    values = [value for output in outputs if (value := getattr(output, name)) is not None]
    return Worth(worst=WORST.get(name, min)(values), median=statistics.median(values)) if values else None


def compare_accuracy(base: Quality | None, new: Quality | None) -> Shown | None:
    """None where neither dump says what its outputs show."""
    ours, theirs = (quality.accuracy if quality else None for quality in (base, new))
    return Shown(base=ours, new=theirs) if ours or theirs else None

"""What an output has to be worth for a tier, and whether those of a run are: the worst one decides."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from difftool.report.perf import Accuracy, OutputQuality, Quality, Tier

GUESSED = ("noise",)  # grain may be meant: it counts where a tier is asked for
TIERS: tuple[Tier, ...] = get_args(Tier)  # each asks more than the one before


@dataclass(frozen=True)
class Least:
    """The least PSNR in dB, and the least structural similarity, 0 to 1; 0 asks for none."""

    psnr: float
    ssim: float


LEAST: dict[Tier, Least] = {"lossy": Least(22, 0.80), "near": Least(30, 0.95), "lossless": Least(45, 0)}


def build_quality(outputs: Sequence[OutputQuality], tier: Tier, reference: str | None) -> Quality | None:
    """The block of a dump, with the verdict; None for a run that made nothing and was asked for nothing."""
    if not outputs and tier == "none":
        return None
    passed, reasons = judge_quality(outputs, tier)
    ranked = [output.model_copy(update={"tier": reached(output)}) for output in outputs]
    judged = [output.right for output in outputs if output.right is not None]
    right = sum(judged)
    accuracy = Accuracy(right=right, count=len(judged), ci95=wilson(right, len(judged))) if judged else None
    return Quality(tier=tier, reference=reference, per_output=ranked, passed=passed, reasons=reasons, accuracy=accuracy)


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share. Source: Wilson 1927."""
    z, p = 1.96, right / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def describe_accuracy(accuracy: Accuracy) -> str:
    """In words, with the interval in per cent."""
    low, high = (100 * share for share in accuracy.ci95)
    count = f"{accuracy.right} of {accuracy.count}"
    return f"the outputs show what their prompts say: {count} ({low:.0f} to {high:.0f} %)"


def judge_quality(outputs: Sequence[OutputQuality], tier: Tier) -> tuple[bool | None, list[str]]:
    """Whether every output reaches the tier and passes its tripwires, with what speaks against it.

    None: nothing speaks against it, but something could not be computed, which is never a pass.
    """
    failed = [reason for output in outputs for reason in _failures(output, tier)]
    unknown = [reason for output in outputs for reason in _unknown(output, tier)]
    if failed:
        return False, failed
    if not outputs and tier != "none":
        unknown = ["no output was compared with a reference"]
    return (None, unknown) if unknown else (True, [])


def reached(output: OutputQuality) -> Tier:
    """The best tier that the numbers of an output show."""
    return next(tier for tier in reversed(TIERS) if judge_quality([output], tier)[0] or tier == "none")


def _failures(output: OutputQuality, tier: Tier) -> list[str]:
    name = _name(output)
    counted = [tripwire for tripwire in output.tripwires if tier != "none" or tripwire not in GUESSED]
    found = [f"{name} fails the tripwire {tripwire}" for tripwire in counted]
    if tier == "exact" and output.max_abs:
        found.append(f"{name} differs by up to {output.max_abs:.3g}, and exact asks for none")
    if tier in LEAST and output.max_abs != 0:
        values = (("PSNR", output.psnr, LEAST[tier].psnr), ("SSIM", output.ssim, LEAST[tier].ssim))
        found += [
            f"{name} has {metric} {value:.4g}, and {tier} asks for {least:g}"
            for metric, value, least in values
            if value is not None and value < least
        ]
    return found


def _unknown(output: OutputQuality, tier: Tier) -> list[str]:
    """What the tier asks for and nobody computed."""
    name, missing = _name(output), []
    if tier == "exact" and output.max_abs is None:
        missing = ["max_abs"]
    if tier in LEAST and output.max_abs != 0:
        asked = (("PSNR", output.psnr, LEAST[tier].psnr), ("SSIM", output.ssim, LEAST[tier].ssim))
        missing = [metric for metric, value, least in asked if value is None and least]
    why = f" ({'; '.join(output.missing)})" if output.missing else ""
    return [f"{name} has no {what}, which {tier} asks for{why}" for what in missing]


def _name(output: OutputQuality) -> str:
    return f"output {output.output} of item {output.item}"

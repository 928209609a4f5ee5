"""The quality of a run on the command line: references are made first, and what the outputs are worth is told last."""

import sys
from collections.abc import Mapping
from pathlib import Path

from difftool import launch
from difftool.cli.progress import Mode, make_listener
from difftool.errors import PlanError, QualityFailed
from difftool.launch.events import Event
from difftool.launch.references import make_references, references_missing
from difftool.planning.plan import Plan
from difftool.report.perf import Quality
from difftool.report.quality import describe_accuracy
from difftool.report.scores import list_scores

SHOWN_REASONS = 3
WORDS = {"psnr": "PSNR {:.1f} dB", "ssim": "SSIM {:.3f}", "lpips": "LPIPS {:.3f}", "clip_image": "CLIP {:.3f}"}


def prepare_references(plan: Plan, *, alone: bool, mode: Mode, verbose: bool) -> None:
    """Makes what the outputs will be compared with, unless it is there; nothing of it goes to stdout.

    Raises PlanError where this process is not `alone`: the ranks of an outer launcher and other machines make one run.
    """
    if not references_missing(plan):
        return
    folder = Path(plan.quality.files[0]).parent
    if not alone:
        message = f"quality.reference: {folder} holds no references yet, and these ranks make one run only"
        raise PlanError(message, hint="give quality.reference.dir, a folder of files that were made before")
    if mode not in ("plain", "live"):
        make_references(plan, launch.run, on_event=_ignore, verbose=verbose)
        return
    print(f"makes the reference first: {plan.quality.reference}", file=sys.stderr)
    with make_listener(mode) as listener:
        make_references(plan, launch.run, on_event=listener.take, verbose=verbose)
    print("makes the outputs to compare with it", file=sys.stderr)


def _ignore(event: Event) -> None:
    """For a stream that is about another run."""


def quality_lines(quality: Quality | None) -> list[str]:
    """What there is to say of a comparison, and of the prompts."""
    if quality is None:
        return []
    scores: dict[str, float] = {score.name: score.base.worst for score in list_scores(quality, None) if score.base}
    told = [f"the outputs and their prompts: CLIP {scores['clip']:.3f} at worst"] if "clip" in scores else []
    if quality.reference is None:
        return told
    state = {True: "reached", False: "not reached", None: "cannot be said"}[quality.passed]
    tier = "" if quality.tier == "none" else f"{quality.tier} {state} "
    lines = [f"quality: {tier}against {quality.reference}{_worst(quality, scores)}", *told]
    return lines + ([describe_accuracy(quality.accuracy)] if quality.accuracy else [])


def _worst(quality: Quality, scores: Mapping[str, float]) -> str:
    if quality.per_output and all(output.max_abs == 0 for output in quality.per_output):
        return ", every pixel equal"
    shown = [words.format(scores[name]) for name, words in WORDS.items() if name in scores]
    return f", at worst {', '.join(shown)}" if shown else ""


def check_quality(quality: Quality | None, perf: Path | None) -> None:
    """Raises QualityFailed unless the outputs are what was asked for; what cannot be said is no pass."""
    if quality is None or quality.passed:
        return
    reasons, more = quality.reasons[:SHOWN_REASONS], len(quality.reasons) - SHOWN_REASONS
    words = "; ".join([*reasons, *([f"and {more} more"] if more > 0 else [])])
    raise QualityFailed(f"quality: {words}", hint=f"the outputs are kept; their numbers are in {perf}")

"""What the command line decides beside the recipe, and of both where outputs go and their names and formats."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftool.errors import Problem
from difftool.planning.checkpoint import Checkpoint
from difftool.planning.plan import GIF_MAX_FPS, Item, OutputPlan, Plan, ProfilePlan

SUFFIXES = {f".{kind}": kind for kind in ("png", "jpg", "webp", "mp4", "gif", "wav", "npz")} | {".jpeg": "jpg"}
FORMATS: Mapping[str, tuple[str, ...]] = {  # of what a pipeline makes; the first is what `auto` means
    "image": ("png", "jpg", "webp", "npz"),
    "video": ("mp4", "gif", "npz"),
    "audio": ("wav", "npz"),
}
PLURALS = {"image": "single pictures", "video": "videos", "audio": "sound"}
WITH_QUALITY = ("jpg", "webp", "mp4")  # formats that lose something


@dataclass(frozen=True)
class RunOptions:
    """What the command line decides besides the recipe: `-o FILE` or `-o FOLDER/`, whether to write media, and whether
    to go on after an item has failed. `recorded` is the plan of the run that is taken up: its drawn seeds are kept.
    A `preview` is a plan to be looked at, which need not be able to run. `profile`: what a profiler is to record.
    """

    output_file: Path | None = None
    output_dir: str | None = None
    save_output: bool = True
    return_frames: bool = False
    keep_going: bool = False
    recorded: Plan | None = None
    preview: bool = False
    profile: ProfilePlan | None = None


def _format(output: Mapping[str, Any], run: RunOptions, made: str) -> str | None:
    """The format that `-o` or the recipe asks for, or that `auto` means; None for a suffix nobody knows."""
    if run.output_file is not None:
        return SUFFIXES.get(run.output_file.suffix.lower())
    kind: str = output["format"]
    return FORMATS[made][0] if kind == "auto" else kind


def format_problems(
    output: Mapping[str, Any], run: RunOptions, checkpoint: Checkpoint, items: Sequence[Item]
) -> list[Problem]:
    made = checkpoint.pipeline.makes
    kind = _format(output, run, made)
    if kind not in FORMATS[made]:
        valid = f"{', '.join(FORMATS[made][:-1])} or {FORMATS[made][-1]}"
        asked = f"-o {run.output_file}" if run.output_file is not None else f"output.format={kind}"
        return [Problem("output.format", f"{asked}: {checkpoint.family.title} makes {PLURALS[made]}; use {valid}")]
    found = []
    if output["quality"] is not None and kind not in WITH_QUALITY:
        found.append(Problem("output.quality", f"output.quality: {kind} has none; it is for {', '.join(WITH_QUALITY)}"))
    if kind == "gif" and any(item.sampling.get("fps", 0) > GIF_MAX_FPS for item in items):
        found.append(Problem("sampling.fps", f"sampling.fps: a gif shows {GIF_MAX_FPS} frames a second at most"))
    return found


def name_problems(output: Mapping[str, Any]) -> list[Problem]:
    fields = ("name", "model", "id", "index", "output", "seed", "prompt", "date", "run_id")
    try:
        name = output["name"].format(**dict.fromkeys(fields, 0))
    except (KeyError, IndexError, ValueError) as error:
        message = f"output.name: {output['name']!r} has an unknown placeholder ({error}); known: {', '.join(fields)}"
        return [Problem("output.name", message)]
    if name.startswith(("/", "~")) or ".." in Path(name).parts:
        return [Problem("output.name", f"output.name: {output['name']!r} leaves output.dir")]
    return []


def output_folder(folder: str, run: RunOptions) -> str:
    """Where media go: `output.dir`, unless `-o` says otherwise."""
    if run.output_file is not None:
        folder = str(run.output_file.parent)
    return os.path.abspath(os.path.expanduser(run.output_dir or folder))


def plan_output(output: Mapping[str, Any], run: RunOptions, made: str) -> OutputPlan:
    file = run.output_file
    kind = _format(output, run, made)
    return OutputPlan(
        dir=output_folder(output["dir"], run),
        file=None if file is None else file.name,
        name=output["name"],
        format=kind,
        quality=output["quality"],
        embed_metadata=output["embed_metadata"],
        on_collision=output["on_collision"],
        return_frames=run.return_frames,
        save=run.save_output,
    )

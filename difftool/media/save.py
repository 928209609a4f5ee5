"""Writes what an item made: encoded, read back, flushed, then renamed into place."""

import filecmp
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from torch import Tensor

from difftool.errors import OutputError
from difftool.files import make_folder, output_error, place_new, write_atomic, write_temporary
from difftool.media import audio, pictures, video
from difftool.media.writer import Details, Writer, metadata_text
from difftool.planning.naming import candidates
from difftool.planning.plan import Item, Plan

# by the rank of what was made: [C, T], [C, H, W] or [C, F, H, W]; then by format
WRITERS: Mapping[int, Mapping[str, Writer]] = {2: audio.WRITERS, 3: pictures.WRITERS, 4: video.WRITERS}
VERSIONS = ("difftool", "torch", "diffusers")  # what can change a picture; named inside it


@dataclass(frozen=True)
class Saved:
    """One file in place; a sound has neither width nor height."""

    path: Path
    sha256: str
    size: int
    width: int | None
    height: int | None


def save_item(
    plan: Plan, item: Item, made: Tensor, path: Path, *, replace: bool, sample_rate: int | None = None
) -> list[Saved]:
    """A picture, a video ([0, 1]) or a sound ([-1, 1]) -> the item's files. Raises OutputError.

    The file in the plan's format, and raw values beside it if asked. A video's fps is the item's own; a sound's
    `sample_rate` is the model's, in Hz. `replace`: files of these names are this item's own.
    """
    kind, collision = plan.output.format, "overwrite" if replace else plan.output.on_collision
    text = None
    if plan.output.embed_metadata:
        text = metadata_text({"recipe": plan.item_recipe(item), "versions": _versions()})
    details = Details(plan.output.quality, text, item.sampling.get("fps"), sample_rate)
    saved = [_save(made, details, path, kind, collision)] if plan.output.save else []
    if plan.output.return_frames and not (saved and kind == "npz"):
        saved.append(_save(made, details, path.with_suffix(".npz"), "npz", collision))
    return saved


def save_raw(made: Tensor, path: Path) -> None:
    """The raw values as NPZ, for the process that started the run. Raises OutputError."""
    make_folder(path.parent)
    write_atomic(path, WRITERS[made.ndim]["npz"].encode(made, Details()))


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in VERSIONS}


def _save(made: Tensor, details: Details, path: Path, kind: str, collision: str) -> Saved:
    writer = WRITERS[made.ndim][kind]
    try:
        data = writer.encode(made, details)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be written: {error}") from error
    try:
        writer.check(data, made, details)
    except (OSError, ValueError) as error:
        raise OutputError(f"the {kind} for {path} does not read back: {error}") from error
    make_folder(path.parent)
    placed = _place(write_temporary(path, data), path, collision)
    height, width = made.shape[-2:] if made.ndim > 2 else (None, None)
    return Saved(placed, hashlib.sha256(data).hexdigest(), len(data), width, height)


def _place(temporary: Path, path: Path, collision: str) -> Path:
    """Gives the finished file its name without replacing another file, unless `overwrite` says so.

    The name was free when the run began: a file with these very bytes is what a start that was killed left there.
    """
    try:
        if collision == "overwrite":
            os.replace(temporary, path)
            return path
        if path.is_file() and filecmp.cmp(temporary, path, shallow=False):
            return path
        return next(candidate for candidate in candidates(path, collision) if place_new(temporary, candidate))
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)

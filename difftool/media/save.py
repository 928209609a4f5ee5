"""Writes an item's picture: encoded, read back, flushed, then renamed into place."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from difftool.errors import OutputError
from difftool.files import make_folder, output_error, place_new, write_temporary
from difftool.media.naming import candidates, target
from difftool.media.pictures import check, encode
from difftool.planning.plan import Item, Plan


@dataclass(frozen=True)
class Saved:
    """One file in place."""

    path: Path
    sha256: str
    width: int
    height: int


def save_item(plan: Plan, item: Item, pixels: Tensor, run_id: str) -> list[Saved]:
    """[C, H, W] in [0, 1] -> the item's files: the picture, and raw values beside it if asked. Raises OutputError."""
    path = target(plan, item, run_id)
    kind = plan.output.format
    saved = [_save(plan, item, pixels, path, kind)] if plan.output.save else []
    if plan.output.return_frames and not (saved and kind == "npz"):
        saved.append(_save(plan, item, pixels, path.with_suffix(".npz"), "npz"))
    return saved


def _save(plan: Plan, item: Item, pixels: Tensor, path: Path, kind: str) -> Saved:
    recipe = plan.item_recipe(item) if plan.output.embed_metadata else None
    data = encode(pixels, kind, quality=plan.output.quality, recipe=recipe)
    size = pixels.shape[2], pixels.shape[1]
    try:
        check(data, kind, size)
    except (OSError, ValueError) as error:
        raise OutputError(f"the {kind} for {path} does not read back: {error}") from error
    make_folder(path.parent)
    placed = _place(write_temporary(path, data), path, plan.output.on_collision)
    return Saved(placed, hashlib.sha256(data).hexdigest(), *size)


def _place(temporary: Path, path: Path, collision: str) -> Path:
    """Gives the finished file its name without replacing another file, unless `overwrite` says so."""
    try:
        if collision == "overwrite":
            os.replace(temporary, path)
            return path
        return next(candidate for candidate in candidates(path, collision) if place_new(temporary, candidate))
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)

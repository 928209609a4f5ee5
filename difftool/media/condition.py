"""Condition pictures: read as diffusers' `load_image` reads them, upright and in RGB."""

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

from difftool.errors import RecipeError


@dataclass(frozen=True)
class Picture:
    """One condition picture, and what names its content."""

    image: Image.Image
    sha256: str


def read_picture(path: str) -> Picture:
    """Raises RecipeError for a file that is gone, or no picture, since the plan was made."""
    try:
        data = Path(path).read_bytes()
        with Image.open(BytesIO(data)) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise RecipeError(f"the input picture {path} cannot be read: {error}") from error
    return Picture(upright, hashlib.sha256(data).hexdigest())

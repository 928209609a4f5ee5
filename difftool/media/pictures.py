"""Pictures to bytes: PNG, JPEG, WebP, and NPZ for raw values, with the item's recipe inside."""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor

METADATA_KEY = "difftool"
USER_COMMENT = 0x9286  # the EXIF field for free text, in JPEG and WebP
EXIF_POINTER = 0x8769
QUALITY = {"jpg": 95, "webp": 95}


def to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """[C, H, W] in [0, 1] -> [H, W, C] uint8, rounded to nearest as diffusers does."""
    values = pixels.float().permute(1, 2, 0).cpu().numpy()
    return (values * 255).round().astype(np.uint8)


def encode(pixels: Tensor, kind: str, *, quality: int | None, recipe: Mapping[str, Any] | None) -> bytes:
    """[C, H, W] in [0, 1] -> the bytes of a file. `recipe` goes inside, except into NPZ, which is values only."""
    if kind == "npz":
        buffer = io.BytesIO()
        np.savez(buffer, pixels=pixels.float().cpu().numpy())
        return buffer.getvalue()
    text = None if recipe is None else json.dumps(recipe, ensure_ascii=False, sort_keys=True)
    return WRITERS[kind](Image.fromarray(to_uint8(pixels)), quality or QUALITY.get(kind, 0), text)


def _png(picture: Image.Image, quality: int, text: str | None) -> bytes:
    info = PngImagePlugin.PngInfo()
    if text is not None:
        info.add_itxt(METADATA_KEY, text)
    return _saved(picture, "PNG", pnginfo=info)


def _jpg(picture: Image.Image, quality: int, text: str | None) -> bytes:
    return _saved(picture, "JPEG", quality=quality, subsampling=0, exif=_exif(text))


def _webp(picture: Image.Image, quality: int, text: str | None) -> bytes:
    return _saved(picture, "WEBP", quality=quality, exif=_exif(text))


def _exif(text: str | None) -> Image.Exif:
    exif = Image.Exif()
    if text is not None:
        exif.get_ifd(EXIF_POINTER)[USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-le")
    return exif


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


WRITERS: dict[str, Callable[[Image.Image, int, str | None], bytes]] = {"png": _png, "jpg": _jpg, "webp": _webp}


def check(data: bytes, kind: str, size: tuple[int, int]) -> None:
    """Reads the bytes back. Raises ValueError if they do not hold a picture of `size` (width, height)."""
    if kind == "npz":
        shape = np.load(io.BytesIO(data))["pixels"].shape
        found = shape[2], shape[1]
    else:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            found = picture.size
    if found != size:
        raise ValueError(f"the encoded {kind} is {found[0]}x{found[1]}, not {size[0]}x{size[1]}")

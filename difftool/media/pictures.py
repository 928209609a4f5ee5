"""Pictures to bytes and back: PNG, JPEG and WebP, with the item's recipe inside.

Pixels are [C, H, W] in [0, 1]: channels, height, width."""

import io
from collections.abc import Callable
from typing import Any

from PIL import Image, PngImagePlugin
from torch import Tensor

from difftool.media.writer import Details, Writer, expect, npz_writer, to_uint8

METADATA_KEY = "difftool"
USER_COMMENT = 0x9286  # the EXIF field for free text, in JPEG and WebP
EXIF_POINTER = 0x8769
EXIF_MAX = 65_533  # bytes of one JPEG segment
QUALITY = 95  # of jpg and webp, unless output.quality is given

Encode = Callable[[Image.Image, Details], bytes]


def _png(picture: Image.Image, details: Details) -> bytes:
    info = PngImagePlugin.PngInfo()
    if details.metadata is not None:
        info.add_itxt(METADATA_KEY, details.metadata)
    return _saved(picture, "PNG", pnginfo=info)


def _jpg(picture: Image.Image, details: Details) -> bytes:
    exif = _exif(details.metadata)
    if len(exif.tobytes()) > EXIF_MAX:
        raise ValueError("its recipe is too long for a jpg; use png or webp, or output.embed_metadata: false")
    return _saved(picture, "JPEG", quality=details.quality or QUALITY, subsampling=0, exif=exif)


def _webp(picture: Image.Image, details: Details) -> bytes:
    return _saved(picture, "WEBP", quality=details.quality or QUALITY, exif=_exif(details.metadata))


def _exif(text: str | None) -> Image.Exif:
    exif = Image.Exif()
    if text is not None:
        exif.get_ifd(EXIF_POINTER)[USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-le")
    return exif


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _check(data: bytes, pixels: Tensor, details: Details) -> None:
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        expect(picture.size, (pixels.shape[2], pixels.shape[1]), "size")


def _writer(encode: Encode) -> Writer:
    return Writer(lambda pixels, details: encode(Image.fromarray(to_uint8(pixels)), details), _check)


WRITERS = {"png": _writer(_png), "jpg": _writer(_jpg), "webp": _writer(_webp), "npz": npz_writer("pixels")}

"""The recipe inside a picture, video or sound: found by walking the file's blocks, without decoding what it shows.

A file from a stranger is safe to look into: sizes are limited, nothing is unpacked but a text, and that text is read
with the limits of a recipe file.
"""

import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from difftool.errors import RecipeError
from difftool.recipe.document import MAX_BYTES, read_document
from difftool.recipe.nodes import Mark, Node, plain, refuse

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4", ".wav", ".npz")
LIMIT = 2 * MAX_BYTES  # of the text: a resolved recipe is longer than the one it came from
MAX_BLOCKS = 100_000
KEYWORD = b"difftool\0"  # of the PNG text chunk
EXIF_POINTER, USER_COMMENT = 0x8769, 0x9286
UNICODE = b"UNICODE\0"
MP4_COMMENT = (b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data")
NAME = re.compile(r"[\w.:-]{1,200}")
VERSION = re.compile(r"[\w.+-]{1,80}")
NO_RECIPE = "every medium but npz gets one, unless output.embed_metadata is false"


@dataclass(frozen=True)
class Embedded:
    """What a file says of its making: the recipe of its one item and the versions that ran it."""

    kind: str
    recipe: Mapping[str, object]
    versions: Mapping[str, str]


def holds_media(path: Path) -> bool:
    """Whether a file is a medium, by its suffix or by how it begins; only a regular file is opened."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        if not path.is_file():  # a pipe would lose what is read from it
            return False
        with path.open("rb") as file:
            return _signature(file.read(12)) is not None
    except OSError:
        return False


def read_embedded(path: Path, label: str) -> Embedded:
    """The recipe inside the file that messages call `label`. Raises RecipeError where there is none to be trusted."""
    mark = Mark(label)
    try:
        with path.open("rb") as file:
            found = _signature(file.read(12))
            text = None if found is None else _decoded(found.read(file))
    except OSError as error:
        raise refuse(mark, f"cannot be read: {error.strerror}") from None
    except (ValueError, struct.error, zlib.error) as error:
        broken = str(error) if isinstance(error, _Damaged) else "its blocks are damaged"
        raise refuse(mark, f"{broken}; no recipe can be read from it") from None
    if found is None or text is None or not text.startswith("{"):
        raise refuse(mark, "holds no recipe of difftool's", hint=NO_RECIPE)
    return _understood(text, label, found.kind)


def _understood(text: str, label: str, kind: str) -> Embedded:
    inside = f"{label} (recipe inside)"
    document = read_document(text, inside)
    if document.faults:
        raise RecipeError([fault.problem() for fault in document.faults])
    content = document.root.mapping if document.root is not None and document.root.is_mapping else {}
    recipe, versions = content.get("recipe"), content.get("versions")
    if recipe is None or versions is None or not (recipe.is_mapping and versions.is_mapping):
        raise refuse(Mark(label), "holds no recipe of difftool's", hint=NO_RECIPE)
    named = {name: str(node.value) for name, node in versions.mapping.items()}
    keys = [*named, *_keys(recipe)]
    if not all(map(NAME.fullmatch, keys)) or not all(map(VERSION.fullmatch, named.values())):
        raise refuse(Mark(inside), "has keys or versions that difftool never writes")
    content_of_recipe = plain(recipe)
    assert isinstance(content_of_recipe, dict), recipe
    return Embedded(kind, content_of_recipe, named)


def _keys(node: Node) -> Iterator[str]:
    """Every key, at every depth: they are printed as they are."""
    if node.is_mapping:
        for key, child in node.mapping.items():
            yield key
            yield from _keys(child)
    elif node.is_list:
        for child in node.items:
            yield from _keys(child)


class _Damaged(ValueError):
    """A file that cannot be what it says it is; the message is for people."""


def _take(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise _Damaged("it is cut short")
    return data


def _take_text(file: BinaryIO, count: int) -> bytes:
    """`count` bytes of text, in UTF-16 at the longest."""
    if count > 2 * LIMIT:
        raise _Damaged(f"its text of {count} bytes is longer than any recipe")
    return _take(file, count)


def _decoded(data: bytes | None) -> str | None:
    if data is None:
        return None
    is_exif = data.startswith(UNICODE)
    try:
        text = data[len(UNICODE) :].decode("utf-16-le") if is_exif else data.decode("utf-8")
    except UnicodeDecodeError:
        return None  # a comment of another program's
    if len(text) > LIMIT:
        raise _Damaged(f"its text of {len(text)} characters is longer than any recipe")
    return text


def _png(file: BinaryIO) -> bytes | None:
    """The international text chunk with our keyword; others are stepped over unread."""
    file.seek(8)
    for _ in range(MAX_BLOCKS):
        size, kind = struct.unpack(">I4s", _take(file, 8))
        if kind == b"IEND":
            return None
        start = _take(file, min(size, len(KEYWORD))) if kind == b"iTXt" else b""
        if start == KEYWORD:
            rest = _take_text(file, size - len(KEYWORD))
            if struct.unpack(">I", _take(file, 4))[0] != zlib.crc32(kind + start + rest):
                raise _Damaged("its text does not match its checksum")
            return _international_text(rest)
        file.seek(size - len(start) + 4, os.SEEK_CUR)
    return None


def _international_text(rest: bytes) -> bytes:
    """Compression flag and method, language, translated keyword, text. Source: PNG specification, 11.3.3.4."""
    if len(rest) < 2 or rest.count(b"\0", 2) < 2:
        raise _Damaged("its text chunk is damaged")
    text = rest[2:].split(b"\0", 2)[2]
    if rest[0]:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(text, LIMIT)
        if unpacker.unconsumed_tail or not unpacker.eof:
            raise _Damaged("its packed text is damaged or longer than any recipe")
    return text


def _jpeg(file: BinaryIO) -> bytes | None:
    """The EXIF comment, in a segment before the picture's data."""
    file.seek(2)
    for _ in range(MAX_BLOCKS):
        mark, code = _take(file, 2)
        if mark != 0xFF:
            raise _Damaged("its segments are damaged")
        if code in (0xD9, 0xDA):  # the end, or the data
            return None
        if code == 0xFF:  # filling
            file.seek(-1, os.SEEK_CUR)
            continue
        size = struct.unpack(">H", _take(file, 2))[0] - 2
        body = _take(file, max(size, 0)) if code == 0xE1 else b""
        found = _user_comment(body[6:]) if body.startswith(b"Exif\0\0") else None
        if found is not None:
            return found
        file.seek(max(size, 0) - len(body), os.SEEK_CUR)
    return None


def _user_comment(tiff: bytes) -> bytes | None:
    """EXIF's free text, where it is Unicode. Source: TIFF 6.0, section 2, and EXIF 2.3, 4.6.5."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        raise _Damaged("its EXIF block is damaged")
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    pointer = _entry(tiff, order, first, EXIF_POINTER)
    comment = None if pointer is None else _entry(tiff, order, pointer[1], USER_COMMENT)
    if comment is None:
        return None
    count, at = comment
    if at + count > len(tiff):
        raise _Damaged("its EXIF block is cut short")
    data = tiff[at : at + count]
    return data if data.startswith(UNICODE) else None


def _entry(tiff: bytes, order: str, at: int, wanted: int) -> tuple[int, int] | None:
    """Count and value (or offset) of one tag of the directory at `at`."""
    (number,) = struct.unpack_from(f"{order}H", tiff, at)
    for i in range(number):
        tag, _, count, value = struct.unpack_from(f"{order}HHII", tiff, at + 2 + 12 * i)
        if tag == wanted:
            return count, value
    return None


def _riff(file: BinaryIO, end: int, wanted: bytes) -> int | None:
    """Moves behind the header of the chunk `wanted` that lies before `end`; its size."""
    for _ in range(MAX_BLOCKS):
        if file.tell() + 8 > end:
            return None
        kind, size = struct.unpack("<4sI", _take(file, 8))
        if kind == wanted:
            return int(size)
        file.seek(size + size % 2, os.SEEK_CUR)
    return None


def _webp(file: BinaryIO) -> bytes | None:
    file.seek(12)
    size = _riff(file, _length(file), b"EXIF")
    return None if size is None else _user_comment(_take_text(file, size).removeprefix(b"Exif\0\0"))


def _wav(file: BinaryIO) -> bytes | None:
    """The comment of the INFO list."""
    file.seek(12)
    end = _length(file)
    size = _riff(file, end, b"LIST")
    if size is None or _take(file, 4) != b"INFO":
        return None
    comment = _riff(file, file.tell() + size - 4, b"ICMT")
    return None if comment is None else _take_text(file, comment).rstrip(b"\0")


def _gif(file: BinaryIO) -> bytes | None:
    """The comment before the first frame. Source: GIF89a specification, 17-26."""
    file.seek(10)
    flags, _, _ = _take(file, 3)
    file.seek(3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0, os.SEEK_CUR)
    for _ in range(MAX_BLOCKS):
        if _take(file, 1) != b"!":  # a frame, or the end
            return None
        (label,) = _take(file, 1)
        data = _sub_blocks(file)
        if label == 0xFE:
            return data
    return None


def _sub_blocks(file: BinaryIO) -> bytes:
    parts, total = [], 0
    while size := _take(file, 1)[0]:
        total += size
        if total > LIMIT:
            raise _Damaged("its text is longer than any recipe")
        parts.append(_take(file, size))
    return b"".join(parts)


def _mp4(file: BinaryIO) -> bytes | None:
    """The comment of the iTunes list. Source: ISO 14496-12, 4.2; QuickTime File Format, metadata."""
    start, end = 0, _length(file)
    for name in MP4_COMMENT:
        box = _box(file, start, end, name)
        if box is None:
            return None
        start, end = box[0] + (4 if name == b"meta" else 0), box[1]  # meta begins with a version
    file.seek(start)
    if end - start < 8 or struct.unpack(">I", _take(file, 4))[0] != 1:  # 1: the text is UTF-8
        return None
    file.seek(start + 8)
    return _take_text(file, end - start - 8)


def _box(file: BinaryIO, at: int, end: int, wanted: bytes) -> tuple[int, int] | None:
    """Where the content of the box `wanted` starts and ends, of those between `at` and `end`."""
    for _ in range(MAX_BLOCKS):
        if at + 8 > end:
            return None
        file.seek(at)
        size, kind = struct.unpack(">I4s", _take(file, 8))
        header = 8
        if size == 1:
            size, header = struct.unpack(">Q", _take(file, 8))[0], 16
        size = end - at if size == 0 else size  # 0: to the end
        if size < header or at + size > end:
            raise _Damaged("its boxes are damaged or cut short")
        if kind == wanted:
            return at + header, at + size
        at += size
    return None


def _length(file: BinaryIO) -> int:
    at = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(at)
    return end


@dataclass(frozen=True)
class _Signature:
    """How a format is recognised, and where its text is."""

    kind: str
    begins: re.Pattern[bytes]
    read: Callable[[BinaryIO], bytes | None]


SIGNATURES = (
    _Signature("PNG", re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    _Signature("JPEG", re.compile(rb"\xff\xd8\xff"), _jpeg),
    _Signature("WebP", re.compile(rb"RIFF.{4}WEBP", re.S), _webp),
    _Signature("WAV", re.compile(rb"RIFF.{4}WAVE", re.S), _wav),
    _Signature("GIF", re.compile(rb"GIF8[79]a"), _gif),
    _Signature("MP4", re.compile(rb".{4}ftyp", re.S), _mp4),
)


def _signature(head: bytes) -> _Signature | None:
    return next((signature for signature in SIGNATURES if signature.begins.match(head)), None)

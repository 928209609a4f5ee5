"""Reads what is embedded back with Pillow, ffmpeg and wave, as any other program would."""

import io
import json
import subprocess

import imageio_ffmpeg
from PIL import Image


def embedded(data: bytes):
    """The mapping inside a file's bytes, or None."""
    if data[4:8] == b"ftyp":
        return _parsed(ffmpeg_comment(data))
    if data[8:12] == b"WAVE":
        at = data.find(b"ICMT")
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        return None if at < 0 else _parsed(data[at + 8 : at + 8 + size].rstrip(b"\0"))
    with Image.open(io.BytesIO(data)) as picture:
        if picture.format == "GIF":
            return _parsed(picture.info.get("comment"))
        if "difftool" in picture.info:
            return json.loads(picture.info["difftool"])
        comment = picture.getexif().get_ifd(0x8769).get(0x9286)
    return None if comment is None else json.loads(comment.removeprefix(b"UNICODE\0").decode("utf-16-le"))


def ffmpeg_comment(data: bytes) -> bytes | None:
    """The comment as ffmpeg reads it."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", "pipe:0", "-f", "ffmetadata", "pipe:1"]
    lines = subprocess.run(command, input=data, capture_output=True, check=True).stdout.splitlines()
    found = [line.removeprefix(b"comment=") for line in lines if line.startswith(b"comment=")]
    if not found:
        return None
    text = found[0].replace(b"\\\\", b"\0")
    return text.replace(b"\\", b"").replace(b"\0", b"\\")


def _parsed(text: bytes | None):
    return None if text is None else json.loads(text)

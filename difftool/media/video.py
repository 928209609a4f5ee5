"""Videos to bytes and back, by the ffmpeg that imageio-ffmpeg brings: MP4 (H.264) and GIF, with the recipe inside.

Pixels are [C, F, H, W] in [0, 1]: three channels, frames, height, width.
"""

import re
import subprocess
import tempfile
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
from torch import Tensor

from difftool.errors import OutputError
from difftool.media.writer import Details, Writer, expect, npz_writer, to_uint8
from difftool.planning.plan import GIF_MAX_FPS

QUALITY = 66  # crf 18, which is taken for visually lossless
THREADS = 4  # the same everywhere: x264 divides its work by it, and the bytes with it
TOLERANCE = Fraction(1, 50)  # seconds that a GIF's rounded delays may add up to
BITEXACT = ("-fflags", "+bitexact", "-flags:v", "+bitexact")  # no version of ffmpeg in the file
BT709 = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv")
TO_YUV = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+bitexact+full_chroma_int"
TO_PALETTE = "split[a][b];[a]palettegen[palette];[b][palette]paletteuse"  # one palette, so that colours do not flicker


def crf(quality: int) -> int:
    """1..100 -> x264's constant rate factor, 51 (worst) to 1; 0 would be lossless, which few players can read."""
    return 51 - quality // 2


def _mp4(pixels: Tensor, details: Details) -> bytes:
    """H.264 in 4:2:0; in 4:4:4 where a side is odd, which 4:2:0 cannot hold without cutting or padding the picture."""
    height, width = pixels.shape[2:]
    layout = "yuv444p" if height % 2 or width % 2 else "yuv420p"
    quality = ("-preset", "medium", "-crf", str(crf(details.quality or QUALITY)), "-threads", str(THREADS))
    with tempfile.TemporaryDirectory(prefix="difftool-") as folder:  # the index goes first, so no pipe
        notes, target = Path(folder, "notes.txt"), Path(folder, "video.mp4")
        notes.write_text(_notes(details.metadata), encoding="utf-8")
        _ffmpeg(
            *_raw(pixels, details), "-f", "ffmetadata", "-i", str(notes), "-map", "0:v", "-map_metadata", "1",
            "-vf", TO_YUV, "-c:v", "libx264", "-pix_fmt", layout, *quality, *BT709, *BITEXACT,
            "-movflags", "+faststart", str(target), data=to_uint8(pixels).tobytes(),
        )  # fmt: skip
        return target.read_bytes()


def _notes(text: str | None) -> str:
    """ffmpeg's metadata file. A file, because a recipe may be longer than an argument."""
    escaped = re.sub(r"([=;#\\\n])", r"\\\1", text or "")
    return f";FFMETADATA1\ncomment={escaped}\n" if escaped else ";FFMETADATA1\n"


def _gif(pixels: Tensor, details: Details) -> bytes:
    """256 colours for the whole video, dithered; frames that do not change are kept."""
    assert details.fps is not None
    if details.fps > GIF_MAX_FPS:
        raise ValueError(f"a gif shows {GIF_MAX_FPS} frames a second at most, not {details.fps}")
    options = ("-filter_complex", TO_PALETTE, *BITEXACT, "-f", "gif", "pipe:1")
    data = _ffmpeg(*_raw(pixels, details), *options, data=to_uint8(pixels).tobytes())
    return data if details.metadata is None else _with_comment(data, details.metadata.encode())


def _with_comment(gif: bytes, text: bytes) -> bytes:
    """The GIF with a comment block before its first frame, behind the block that makes it loop."""
    at = 13 + (3 * 2 ** ((gif[10] & 7) + 1) if gif[10] & 0x80 else 0)  # header, screen, palette
    if gif[at : at + 2] == b"\x21\xff":
        at += 16 + gif[at + 14]  # a name of 11 bytes, one block of data, a terminator
    blocks = b"".join(bytes([len(text[i : i + 255])]) + text[i : i + 255] for i in range(0, len(text), 255))
    return gif[:at] + b"\x21\xfe" + blocks + b"\0" + gif[at:]


def _raw(pixels: Tensor, details: Details) -> tuple[str, ...]:
    """The input: frames on stdin."""
    channels, _, height, width = pixels.shape
    assert channels == 3 and details.fps is not None, (pixels.shape, details.fps)
    size = ("-s", f"{width}x{height}", "-r", str(details.fps))
    return ("-f", "rawvideo", "-pix_fmt", "rgb24", *size, "-i", "pipe:0")


def _check(data: bytes, pixels: Tensor, details: Details) -> None:
    """Decodes every frame: their number, size and duration."""
    assert details.fps is not None
    _, frames, height, width = pixels.shape
    report = _ffmpeg("-xerror", "-i", "pipe:0", "-fps_mode", "passthrough", "-f", "framecrc", "pipe:1", data=data)
    text = report.decode()
    facts = dict(re.findall(r"^#(tb|dimensions) 0: (\S+)$", text, re.M))
    rows = [line.split(",") for line in text.splitlines() if not line.startswith("#")]
    expect(facts.get("dimensions"), f"{width}x{height}", "size")
    expect(len(rows), frames, "number of frames")
    seconds = (int(rows[-1][2]) + int(rows[-1][3])) * Fraction(facts["tb"])
    if abs(seconds - Fraction(frames, details.fps)) > TOLERANCE:
        raise ValueError(f"it lasts {float(seconds):.3f} s, not {frames / details.fps:.3f} s")


def _ffmpeg(*arguments: str, data: bytes) -> bytes:
    """Runs ffmpeg on `data`; its stdout. Raises ValueError with what it says, OutputError where there is none."""
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        hint = "reinstall imageio-ffmpeg, or use output.format: npz"
        raise OutputError("no ffmpeg was found, which writes mp4 and gif", hint=hint) from error
    command = [program, "-hide_banner", "-nostats", "-loglevel", "error", *arguments]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(lines[-1] if lines else f"ffmpeg ended with {done.returncode}")
    return done.stdout


WRITERS = {"mp4": Writer(_mp4, _check), "gif": Writer(_gif, _check), "npz": npz_writer("pixels")}

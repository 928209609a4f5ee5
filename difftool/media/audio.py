"""Sound to bytes and back: WAV, with the recipe in its INFO list.

Sound is [C, T] in [-1, 1]: channels, samples.
"""

import io
import struct
import wave

from torch import Tensor

from difftool.media.writer import Details, Writer, expect, npz_writer

PEAK = 32767  # of 16-bit samples


def _wav(audio: Tensor, details: Details) -> bytes:
    """16-bit PCM, the channels interleaved; values beyond [-1, 1] are clipped, as any player would."""
    assert details.sample_rate is not None
    values = (audio.float().clamp(-1, 1) * PEAK).round().T.contiguous().cpu().numpy().astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(audio.shape[0])
        file.setsampwidth(2)
        file.setframerate(details.sample_rate)
        file.writeframes(values.tobytes())
    data = buffer.getvalue()
    return data if details.metadata is None else _with_comment(data, details.metadata.encode() + b"\0")


def _with_comment(data: bytes, text: bytes) -> bytes:
    """The file with a comment (ICMT) in a LIST behind its samples. Source: RIFF's INFO list, Microsoft 1991."""
    comment = struct.pack("<4sI", b"ICMT", len(text)) + text + b"\0" * (len(text) % 2)
    whole = data + b"\0" * (len(data) % 2) + struct.pack("<4sI4s", b"LIST", len(comment) + 4, b"INFO") + comment
    return whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:]


def _check(data: bytes, audio: Tensor, details: Details) -> None:
    try:
        with wave.open(io.BytesIO(data)) as file:
            found = file.getnchannels(), len(file.readframes(file.getnframes())) // (2 * file.getnchannels())
            rate = file.getframerate()
    except (EOFError, wave.Error) as error:
        raise ValueError(f"it is cut short ({error})") from error
    expect(found, tuple(audio.shape), "number of channels and samples")
    expect(rate, details.sample_rate, "sample rate")


WRITERS = {"wav": Writer(_wav, _check), "npz": npz_writer("audio")}

"""What a writer of a format is given and gives, and the one format that every medium shares: NPZ, raw values."""

import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from difftool.media.values import to_bytes

# what no YAML or JSON reader takes unescaped, or a terminal obeys
UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


@dataclass(frozen=True)
class Details:
    """What goes into a file besides its values. `fps` is for video, `sample_rate` (Hz) for sound."""

    quality: int | None = None
    metadata: str | None = None
    fps: int | None = None
    sample_rate: int | None = None


@dataclass(frozen=True)
class Writer:
    """`encode` makes the bytes of a file; `check` reads them back. Both raise ValueError where that is impossible."""

    encode: Callable[[Tensor, Details], bytes]
    check: Callable[[bytes, Tensor, Details], None]


def metadata_text(content: Mapping[str, object]) -> str:
    """One line of JSON with sorted keys, so that bytes do not depend on their order, and with nothing unprintable."""
    text = json.dumps(content, ensure_ascii=False, sort_keys=True)
    return UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """[C, ..., H, W] in [0, 1] -> [..., H, W, C] uint8, rounded to nearest as diffusers does."""
    return to_bytes(pixels.float().cpu().numpy())


def expect(found: object, wanted: object, what: str) -> None:
    """Raises ValueError where a file read back differs."""
    if found != wanted:
        raise ValueError(f"its {what} is {found}, not {wanted}")


def npz_writer(name: str) -> Writer:
    """float32 values under `name`, with `fps` or `sample_rate` beside them; no metadata."""

    def encode(made: Tensor, details: Details) -> bytes:
        given = {"fps": details.fps, "sample_rate": details.sample_rate}
        rates = {key: np.asarray(rate) for key, rate in given.items() if rate is not None}
        buffer = io.BytesIO()
        np.savez(buffer, **{name: made.float().cpu().numpy()}, **rates)
        return buffer.getvalue()

    def check(data: bytes, made: Tensor, details: Details) -> None:
        expect(np.load(io.BytesIO(data))[name].shape, tuple(made.shape), "shape")

    return Writer(encode, check)

"""The condition pictures of a request, as planning sees them: that they can be read, their size, and their content."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SINGLE = ("last_image", "mask")
KEYS = ("image", *SINGLE)
ORIENTATION, SIDEWAYS = 274, (5, 6, 7, 8)  # the EXIF tag, and its values that swap width and height


def as_lists(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """The pictures that sampling values name, by key; keys without any are left out."""
    given = {key: values[key] for key in KEYS if values.get(key) is not None}
    return {key: [value] if isinstance(value, str) else list(value) for key, value in given.items()}


def size_of(path: str) -> tuple[int, int]:
    """Width and height in pixels, as seen upright. Raises ValueError with the reason."""
    from PIL import Image

    if "://" in path:
        raise ValueError("an address, not a file; fetch it and name the file")
    try:
        with Image.open(path) as picture:
            picture.load()  # a truncated file is found here, not in the worker
            (width, height), turned = picture.size, picture.getexif().get(ORIENTATION, 1) in SIDEWAYS
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"it cannot be read as a picture ({type(error).__name__})") from None
    return (height, width) if turned else (width, height)


def digests(requests: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The sha256 of every picture that these sampling values name, by path."""
    paths = {path for values in requests for listed in as_lists(values).values() for path in listed}
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in sorted(paths)}


def by_content(sampling: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """The sampling section with its pictures named by what they hold, for a hash that moving a file does not change."""
    named: dict[str, Any] = {key: [digests.get(p, p) for p in paths] for key, paths in as_lists(sampling).items()}
    entries = sampling.get("prompts")
    if isinstance(entries, list):
        named["prompts"] = [by_content(entry, digests) for entry in entries]
    return {**sampling, **named}

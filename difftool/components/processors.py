"""Processors of text and pictures, which read pictures with PIL.

transformers' own ask for torchvision, for a part that reads videos and for a faster way with pictures. No pipeline here
reads videos, and one way with pictures means the same bits on every machine.
"""

from pathlib import Path
from typing import Any

from transformers import ProcessorMixin

VIDEO = "video_processor"


def without_video(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The processor's class, under its name, without the part that reads videos."""

    def get_attributes(cls: type[ProcessorMixin]) -> list[str]:
        return [name for name in kind.get_attributes() if name != VIDEO]

    members = {"__module__": kind.__module__, "__doc__": kind.__doc__, "get_attributes": classmethod(get_attributes)}
    return type(kind.__name__, (kind,), members)


def load_processor(kind: type[ProcessorMixin], folder: Path) -> Any:
    """A processor of the class `kind` from its folder."""
    return without_video(kind).from_pretrained(folder, local_files_only=True, backend="pil")

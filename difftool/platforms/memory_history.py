"""What the CUDA allocator did while an item was made, for https://pytorch.org/memory_viz."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from difftool.errors import PlanError
from difftool.files import make_folder, output_error


def check_memory_snapshot(device: str) -> None:
    """Raises PlanError for a device whose allocator keeps no history."""
    if device != "cuda":
        message = f"--memory-snapshot is of CUDA's allocator, and this run is on {device}, whose keeps no history"
        raise PlanError(message, hint="leave it out, or use --device cuda")


@contextmanager
def memory_history(file: Path | None) -> Iterator[None]:
    """Leaves in `file` every allocation and release made inside, with the Python lines that made them; nothing without
    a file. Also where it ends in an error: of memory that ran out it shows what took it. Raises OutputError.
    """
    if file is None:
        yield
        return
    make_folder(file.parent)
    torch.cuda.memory._record_memory_history(stacks="python")
    try:
        yield
    finally:
        try:
            torch.cuda.memory._dump_snapshot(str(file))
        except OSError as error:
            raise output_error(file, error) from error
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)

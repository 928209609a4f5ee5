"""Loading a checkpoint folder's components: classes by name, one dtype each, straight to the device."""

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from difftool.components.check import check_folder, read_index
from difftool.components.loaded import Components
from difftool.errors import WeightsError

LIBRARIES = ("diffusers", "transformers")


def load_components(
    names: Sequence[str],
    holder: str,
    folder: Path,
    *,
    dtypes: Mapping[str, torch.dtype],
    device: torch.device,
    loaded: Callable[..., None],
) -> Components:
    """Checks the folder, then loads the named components into the diffusers pipeline class `holder`.

    `dtypes` by component; `loaded(name=, detail=, seconds=)` reports each. Raises WeightsError.
    """
    check_folder(folder, names)
    index = read_index(folder)
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    modules: dict[str, Any] = {}
    for name in names:
        start = time.perf_counter()
        modules[name] = _load_one(folder / name, index[name], dtypes.get(name))
        if isinstance(modules[name], torch.nn.Module):
            modules[name].requires_grad_(False).eval().to(device)
            loaded(name=name, detail=_describe(modules[name]), seconds=time.perf_counter() - start)
    return Components(modules, getattr(diffusers, holder)(**modules))


def _load_one(folder: Path, entry: list[str], dtype: torch.dtype | None) -> Any:
    library, class_name = entry
    kind = getattr(importlib.import_module(library), class_name, None) if library in LIBRARIES else None
    if kind is None:
        raise WeightsError(
            f"model_index.json asks for {library}.{class_name}, which is not a class of {' or '.join(LIBRARIES)}",
            hint="install a newer diffusers or transformers, if it is one of theirs",
        )
    try:
        if dtype is None:
            return kind.from_pretrained(folder, local_files_only=True)
        key = "dtype" if library == "transformers" else "torch_dtype"
        return kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, **{key: dtype})
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise WeightsError(f"{folder} cannot be loaded as {class_name}: {error}") from error


def _describe(module: torch.nn.Module) -> str:
    count = sum(p.numel() for p in module.parameters())
    size = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"
    return f"{size} parameters, {str(next(module.parameters()).dtype).removeprefix('torch.')}"

"""Reads the components of a family's own classes from its weight sources; the accounts are made before any is read."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from difftool.components.accounting import Filled, Piece, WeightSource, account
from difftool.components.check import check_safetensors, read_config, stay_within
from difftool.components.fit import FLOATS, empty_model
from difftool.components.headers import Stored
from difftool.components.read import read_tensors
from difftool.errors import PlanError, WeightsError


def own_readers(
    classes: Mapping[str, type],
    sources: Sequence[WeightSource],
    folder: Path,
    *,
    dtypes: Mapping[str, torch.dtype],
    device: torch.device,
) -> dict[str, Callable[[], Any]]:
    """A function that loads each component of `classes`; a module without a source has its weights in its own folder.

    What is no module is made by its `from_pretrained`. Raises WeightsError for weights that do not account for the
    modules, before memory is taken for any.
    """
    readers: dict[str, Callable[[], Any]] = {
        name: partial(from_pretrained, kind, folder / name)
        for name, kind in classes.items()
        if not issubclass(kind, nn.Module)
    }
    for name, (model, filled) in own_modules(classes, sources, folder).items():
        readers[name] = partial(_read, model, filled, dtypes.get(name), device)
    return readers


def own_modules(
    classes: Mapping[str, type], sources: Sequence[WeightSource], folder: Path
) -> dict[str, tuple[nn.Module, Filled]]:
    """Those of `classes` that are modules, on the meta device, each with what fills it. Raises WeightsError for weights
    that do not account for them, and PlanError for a source of something else.
    """
    models = {name: _empty(kind, folder / name) for name, kind in classes.items() if issubclass(kind, nn.Module)}
    declared = {source.component for source in sources}
    if others := sorted(declared - models.keys()):
        known = ", ".join(models) or "none"
        raise PlanError(f"weight_sources name {others[0]}, and the modules of component_classes are {known}")
    every = [*sources, *(WeightSource(name) for name in models if name not in declared)]
    found = [(source, _tensors(source, folder)) for source in every]
    wanted = {name: {key: tuple(value.shape) for key, value in m.state_dict().items()} for name, m in models.items()}
    filled = account(found, wanted)
    for name, model in models.items():
        _check_dtypes(name, model, filled[name])
    return {name: (model, filled[name]) for name, model in models.items()}


def _check_dtypes(component: str, model: nn.Module, filled: Filled) -> None:
    """Raises WeightsError for numbers that a cast would change the meaning of, such as quantized ones."""
    for name, value in model.state_dict().items():
        for piece in filled[name]:
            if value.is_floating_point() and piece.stored.dtype not in FLOATS:
                raise WeightsError(
                    f"{piece.stored.file.name}: {piece.name} is {piece.stored.dtype}, and {component}.{name} asks for "
                    f"{', '.join(FLOATS)}",
                    hint="take weights that are not quantized",
                )


def from_pretrained(kind: Any, folder: Path) -> Any:
    """A component that is no module. Raises WeightsError."""
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder} cannot be loaded as {kind.__name__}: {error}") from error


def _empty(kind: Any, folder: Path) -> nn.Module:
    """The module with its parameters on the meta device, of the keys of the config.json that its folder may have."""
    if issubclass(kind, ModelMixin):
        return empty_model(kind, folder)
    config = read_config(folder) if (folder / "config.json").is_file() else {}
    taken = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with accelerate.init_empty_weights():
            model: nn.Module = kind(**taken)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError) as error:
        what = f"{folder / 'config.json'} is no config of a {kind.__name__}"
        if not config:
            what = f"{folder} has no config.json, or an empty one, and a {kind.__name__} cannot be made without"
        raise WeightsError(f"{what}: {error}") from error
    if not hasattr(model, "config"):
        model.config = taken
    return model


def _tensors(source: WeightSource, checkpoint: Path) -> dict[str, Stored]:
    """All tensors of the files of a source. Raises WeightsError for a file that is not sound, and for no file."""
    folder = checkpoint / (source.component if source.folder is None else source.folder)
    root = checkpoint if folder.is_relative_to(checkpoint) else folder
    files = sorted({path for pattern in source.patterns for path in folder.glob(pattern)})
    if not files:
        raise WeightsError(
            f"{folder} has no {' or '.join(source.patterns)} for {source.component}",
            hint="check folder and patterns of the family's weight_sources",
        )
    found: dict[str, Stored] = {}
    for file in files:
        stay_within(file, root)
        tensors = check_safetensors(file)
        if twice := sorted(tensors.keys() & found.keys()):
            raise WeightsError(f"{file} and {found[twice[0]].file} both hold {twice[0]}", hint="narrow the patterns")
        found |= tensors
    return found


def _read(model: nn.Module, filled: Filled, dtype: torch.dtype | None, device: torch.device) -> nn.Module:
    """The module with its weights on the device, each cast once; None keeps the dtypes of the files."""
    stored: dict[Path, dict[str, Stored]] = {}
    for piece in (piece for pieces in filled.values() for piece in pieces):
        stored.setdefault(piece.stored.file, {})[piece.name] = piece.stored
    read = {file: _read_file(tensors, dtype, device) for file, tensors in stored.items()}
    state = {name: _stacked([_rows(read, piece) for piece in pieces]) for name, pieces in filled.items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().to(device)  # moves what the module computed at its making


def _read_file(stored: Mapping[str, Stored], dtype: torch.dtype | None, device: torch.device) -> dict[str, Tensor]:
    """Tensors of one file under their own names."""
    wanted = {name: (name, dtype or FLOATS.get(one.dtype, torch.float32)) for name, one in stored.items()}
    return read_tensors(stored, wanted, device)


def _rows(read: Mapping[Path, Mapping[str, Tensor]], piece: Piece) -> Tensor:
    """A piece is a view of what was read: all rows of a tensor are some parameter's."""
    whole = read[piece.stored.file][piece.name]
    return whole if piece.start is None else whole[piece.start : piece.stop]


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))

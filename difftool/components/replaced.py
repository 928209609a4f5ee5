"""Components that come from elsewhere than the model's own folder: where they lie, and the names in a single file.

A single file holds one diffusers model, under diffusers' names for its tensors or under the names of its first
publication, which diffusers knows how to convert; its config is that of the component it replaces.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.loaders import single_file_model as single_files
from safetensors import safe_open

from difftool.components.check import Weights, check_component, read_config
from difftool.components.fit import FLOATS, check_fit, dtype_rule, empty_model, renamed
from difftool.components.headers import Stored, check_safetensors
from difftool.components.read import model_reader
from difftool.errors import WeightsError

NAMES = {dtype: name for name, dtype in FLOATS.items()}
OTHERS = ("first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "text_encoders.")


@dataclass(frozen=True)
class Place:
    """A component's `folder`; `file` where only its weights are elsewhere."""

    folder: Path
    file: Path | None = None

    def check(self) -> Weights | None:
        """The weights that are there, their headers checked. Raises WeightsError."""
        return check_component(self.folder) if self.file is None else Weights(check_safetensors(self.file))


def single_file_reader(
    kind: type, place: Place, weights: Weights, *, dtype: torch.dtype, device: torch.device
) -> Callable[[], ModelMixin]:
    """A function that reads the model of a single file. Raises WeightsError where its tensors do not fit."""
    assert place.file is not None, place
    if not issubclass(kind, ModelMixin):
        raise WeightsError(
            f"{place.file} stands for a {kind.__name__}, which is read from a folder with its config only",
            hint="give the folder of the component",
        )
    model = empty_model(kind, place.folder, dtype)
    wanted = model.state_dict()
    if 2 * sum(name in wanted for name in renamed(model, weights.tensors)) > len(weights.tensors):
        return model_reader(kind, place.folder, weights, dtype=dtype, device=device)
    _refuse_all_in_one(place.file, weights)
    config = read_config(place.folder)
    convert = _conversion(kind, place.file)
    empty = {
        name: torch.empty(stored.shape, dtype=FLOATS.get(stored.dtype, torch.float32), device="meta")
        for name, stored in weights.tensors.items()
    }
    made = _converted(convert, empty, config, place.file)
    facts = {name: Stored(place.file, NAMES[t.dtype], tuple(t.shape), t.nbytes) for name, t in made.items()}
    check_fit(model, Weights(facts), place.folder)
    dtype_of = dtype_rule(kind, dtype)

    def read() -> ModelMixin:
        with safe_open(place.file, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in weights.tensors}
        converted = _converted(convert, tensors, config, place.file)
        found = {name: converted.pop(name).to(device, dtype_of(name)) for name in wanted}
        model.load_state_dict(found, strict=True, assign=True)
        return model.eval().to(device)

    return read


def _refuse_all_in_one(file: Path, weights: Weights) -> None:
    other = next((name for name in weights.tensors if name.startswith(OTHERS)), None)
    if other is not None:
        raise WeightsError(
            f"{file} holds more than one model ({other}): only a file with one model's weights is read",
            hint="give the folder or hub id of the whole model",
        )


def _conversion(kind: type[ModelMixin], file: Path) -> Callable[..., dict[str, Any]]:
    for name, functions in single_files.SINGLE_FILE_LOADABLE_CLASSES.items():
        if kind.__name__ == name:
            function: Callable[..., dict[str, Any]] = functions["checkpoint_mapping_fn"]
            return function
    raise WeightsError(
        f"{file} does not name its tensors as diffusers does, and diffusers converts none to a {kind.__name__}",
        hint="take the weights in diffusers' format",
    )


def _converted(
    convert: Callable[..., dict[str, Any]], tensors: dict[str, Any], config: Mapping[str, Any], file: Path
) -> dict[str, Any]:
    """The tensors under diffusers' names. What a conversion leaves of what it takes out is refused."""
    before = len(tensors)
    try:
        found = dict(convert(checkpoint=tensors, config=dict(config)))
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        message = f"{type(error).__name__}: {error}"
        raise WeightsError(f"{file} cannot be converted to diffusers' names ({message})") from error
    left = [name for name in tensors if name not in found] if len(tensors) < before else []
    if left:
        raise WeightsError(f"{file} holds {len(left)} tensors that are not used: {', '.join(left[:3])}")
    return found

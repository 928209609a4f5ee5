"""What only torch can say of a checked component: whether it fits the class of its config, and its numbers."""

from pathlib import Path

import diffusers
import torch
import transformers
from safetensors import safe_open

from difftool.components.check import Weights, read_index
from difftool.components.fit import check_fit, check_transformers_fit, empty_model, not_finite
from difftool.components.load import LIBRARIES, component_class


def check_contents(folder: Path, name: str, weights: Weights) -> str | None:
    """Raises WeightsError for the component of a pipeline folder. Reads every number, and keeps none. Returns what it
    could not check: the shapes of a class that is neither diffusers' nor transformers' own.
    """
    library, class_name = read_index(folder)[name]
    kind = component_class(folder, name) if library in LIBRARIES else object
    if issubclass(kind, diffusers.ModelMixin):
        check_fit(empty_model(kind, folder / name), weights, folder / name)
    elif issubclass(kind, transformers.PreTrainedModel):
        check_transformers_fit(kind, weights, folder / name)
    check_numbers(weights)
    known = issubclass(kind, diffusers.ModelMixin | transformers.PreTrainedModel)
    return None if known else f"names and shapes, as {library}.{class_name} is no model of {' or '.join(LIBRARIES)}"


def check_numbers(weights: Weights) -> None:
    """Raises WeightsError for a tensor that holds NaN or infinity."""
    for path in weights.files:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = [name for name, tensor in weights.tensors.items() if tensor.file == path and tensor.size]
            wrong = [name for name in names if not _is_finite(file.get_tensor(name))]
        if wrong:
            raise not_finite(path, wrong)


def _is_finite(tensor: torch.Tensor) -> bool:
    """A float8 tensor is read as it would be used: in a wider type."""
    if not tensor.is_floating_point():
        return True
    wide = tensor if tensor.itemsize > 1 else tensor.float()
    return bool(torch.linalg.vector_norm(wide, ord=torch.inf).isfinite())

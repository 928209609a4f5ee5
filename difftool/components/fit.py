"""Whether stored tensors are those of the model that a config describes: by name, shape and kind, before any is read.

A model is built on the meta device, which allocates nothing.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import torch
from diffusers import ModelMixin
from diffusers.models.modeling_utils import no_init_weights
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import PreTrainedModel
from transformers.utils import logging

from difftool.components.check import Weights, read_config
from difftool.components.headers import Stored
from difftool.components.loaded import own_part
from difftool.errors import WeightsError

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SHOWN = 3  # names of each fault


def empty_model(kind: type[ModelMixin], folder: Path, dtype: torch.dtype = torch.float32) -> ModelMixin:
    """The model of a config, its parameters on the meta device. What it computes at its making is there.

    Raises WeightsError for a config that is none of this class, or of quantized weights.
    """
    config = read_config(folder)
    if "quantization_config" in config:
        raise WeightsError(
            f"{folder} is quantized (quantization_config in its config.json), which is not available yet",
            hint="take the weights in bf16, fp16 or fp32",
        )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # as diffusers does: buffers that are no weights have it
    try:
        with no_init_weights(), accelerate.init_empty_weights():
            return kind.from_config(config)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise WeightsError(f"{folder / 'config.json'} is no config of a {kind.__name__}: {error}") from error
    finally:
        torch.set_default_dtype(before)


def renamed(model: ModelMixin, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the names that the model has today: attention blocks of old checkpoints have others."""
    found = dict(tensors)
    model._fix_state_dict_keys_on_load(found)
    return found


def dtype_rule(kind: type[ModelMixin], dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    """The dtype that a floating-point tensor of this class has by its name: some modules stay in fp32."""
    kept = kind._keep_in_fp32_modules or ()
    return lambda name: torch.float32 if any(part in kept for part in name.split(".")) else dtype


def check_fit(model: ModelMixin, weights: Weights, folder: Path) -> dict[str, str]:
    """The stored name of each of the model's tensors. Raises WeightsError, naming what does not fit."""
    names = renamed(model, {name: name for name in weights.tensors})
    wanted = {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}
    ignored = type(model)._keys_to_ignore_on_load_unexpected or ()
    extra = [name for name in names if name not in wanted and not any(re.search(word, name) for word in ignored)]
    faults = _named(f"has no tensor of {type(model).__name__}'s", [name for name in wanted if name not in names])
    faults += _named(f"has a tensor that {type(model).__name__} does not take:", extra, weights)
    found = {name: stored for name, stored in names.items() if name in wanted}
    faults += [
        fault
        for name, stored in found.items()
        if (fault := _mismatch(name, weights.tensors[stored], *wanted[name])) is not None
    ]
    _raise_any(faults, folder)
    return found


def _mismatch(name: str, stored: Stored, shape: tuple[int, ...], dtype: torch.dtype) -> str | None:
    if stored.shape != shape:
        return f"{stored.file.name}: {name} has shape {list(stored.shape)}, and its config asks for {list(shape)}"
    if dtype.is_floating_point and stored.dtype not in FLOATS:
        return f"{stored.file.name}: {name} is {stored.dtype}, and its config asks for {', '.join(FLOATS)}"
    return None


def _named(what: str, names: Iterable[str], weights: Weights | None = None) -> list[str]:
    """The fault once for each name, with the file that holds it."""
    if weights is None:
        return [f"{what} {name}" for name in names]
    return [f"{weights.tensors[name].file.name} {what} {name}" for name in names]


def _raise_any(faults: list[str], folder: Path) -> None:
    if not faults:
        return
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    raise WeightsError(
        f"{folder} does not fit its config.json: {'; '.join(faults[:SHOWN])}{more}",
        hint="config and weights are of different models, or one of them is damaged: download both again",
    )


@dataclass(frozen=True)
class EmptyEncoder:
    """A model of transformers on the meta device, and the stored name of each parameter that is stored as it is."""

    model: PreTrainedModel
    stored: Mapping[str, str]


def check_transformers_fit(kind: type[PreTrainedModel], weights: Weights, folder: Path) -> EmptyEncoder | None:
    """Lets transformers itself judge, on the meta device: it renames, converts and ties. Raises WeightsError.

    Tensors that the class does not take are no fault: an encoder is often a part of what a repository holds. None for
    quantized weights, which are not judged.
    """
    config = read_config(folder)
    if "quantization_config" in config:  # its loader makes other tensors of these
        return None
    tensors = {
        name: torch.empty(stored.shape, dtype=torch.float32, device="meta") for name, stored in weights.tensors.items()
    }
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # its report of the same faults
    try:
        model, info = kind.from_pretrained(
            None,
            config=kind.config_class.from_pretrained(folder, local_files_only=True),
            state_dict=tensors,
            device_map={"": "meta"},
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise WeightsError(f"{folder} cannot be loaded as {kind.__name__}: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    faults = [f"has no tensor of {kind.__name__}'s {name}" for name in sorted(info["missing_keys"])]
    faults += [
        f"{name} has shape {list(stored)}, and its config asks for {list(asked)}"
        for name, stored, asked in sorted(info["mismatched_keys"])
    ]
    wanted = dict(model.named_parameters())
    faults += [
        f"{stored.file.name}: {name} is {stored.dtype}, and its config asks for {', '.join(FLOATS)}"
        for name, stored in weights.tensors.items()
        if name in wanted and wanted[name].is_floating_point() and stored.dtype not in FLOATS
    ]
    _raise_any(faults, folder)
    # what was given is what the model holds, unless it was made into something else
    given = {StorageWeakRef(tensor.untyped_storage()): name for name, tensor in tensors.items()}
    held = {name: StorageWeakRef(value.untyped_storage()) for name, value in model.state_dict(keep_vars=True).items()}
    return EmptyEncoder(model, {name: given[place] for name, place in held.items() if place in given})


def check_finite(module: nn.Module, folder: Path, weights: Weights | None) -> None:
    """Raises WeightsError for a parameter that holds NaN or infinity: one pass where the weights lie, one wait."""
    held = [(name, own_part(value)) for name, value in module.named_parameters()]
    named = [(name, value) for name, value in held if value.is_floating_point() and value.numel()]
    if not named:
        return
    # the largest magnitude is NaN or infinite if any is, and needs no copy of the weights
    largest = torch.stack([torch.linalg.vector_norm(value.detach(), ord=torch.inf).float() for _, value in named])
    wrong = [name for (name, _), finite in zip(named, largest.isfinite().tolist(), strict=True) if not finite]
    if wrong:
        stored = weights.tensors.get(wrong[0]) if weights is not None else None
        raise not_finite(folder if stored is None else stored.file, wrong)


def not_finite(path: Path, names: list[str]) -> WeightsError:
    """The error for tensors with NaN or infinity in them."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return WeightsError(
        f"{path} holds NaN or infinity in {', '.join(names[:SHOWN])}{more}",
        hint="the file is damaged, or was converted to a precision that cannot hold it: take another",
    )

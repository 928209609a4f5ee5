"""Reads a diffusers model's weights: made on the meta device, each tensor then read once, to its device and dtype.

diffusers' own `from_pretrained` goes over the CPU, one file after the other, and leaves out what it does not find.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import ModelMixin
from safetensors import safe_open
from torch import Tensor, nn

from difftool.components.check import Weights
from difftool.components.fit import check_fit, dtype_rule, empty_model
from difftool.components.headers import Stored


@dataclass(frozen=True)
class Cut:
    """The part of a stored tensor that a rank keeps: these (start, stop) along `dim`, one after the other."""

    dim: int
    ranges: tuple[tuple[int, int], ...]


NO_CUTS: Mapping[str, Cut] = {}
READERS = min(4, os.cpu_count() or 1)  # threads that read at once; more only wait for the same disk
PART = 32 * 1024 * 1024  # bytes that one of them holds at a time: what is read stays mapped until the part is done


class Shares(Protocol):
    """What of a model this rank keeps: made of the empty model, whose modules it may replace or wrap."""

    @property
    def cuts(self) -> Mapping[str, Cut]:
        """By the names of parameters; those without are kept whole."""

    @property
    def whole(self) -> Mapping[str, Tensor]:
        """The empty model's parameters as they were."""

    def place(self, name: str, tensor: Tensor) -> Tensor:
        """The parameter made of what was read: the tensor itself, or one that knows of the other ranks' parts."""


def model_reader(
    kind: type[ModelMixin],
    folder: Path,
    weights: Weights,
    *,
    dtype: torch.dtype,
    device: torch.device,
    share: Callable[[nn.Module], Shares] | None = None,
) -> Callable[[], ModelMixin]:
    """A function that reads the model of a component folder to the device, in eval mode.

    Modules that the class keeps in fp32 are; what is no floating-point number keeps its dtype. With `share` a rank
    reads its part of each tensor alone. Raises WeightsError for weights that do not fit, before anything is read.
    """
    model = empty_model(kind, folder, dtype)
    stored = check_fit(model, weights, folder)
    dtype_of = dtype_rule(kind, dtype)
    wanted = {source: (name, dtype_of(name)) for name, source in stored.items()}
    for name, parameter in model.named_parameters():  # before a rank keeps a part of what it takes it to be
        parameter.data = parameter.data.to(dtype_of(name) if parameter.is_floating_point() else parameter.dtype)
    shares = share(model) if share is not None else None

    def read() -> ModelMixin:
        found = read_tensors(weights.tensors, wanted, device, cuts=shares.cuts if shares else NO_CUTS)
        if shares is not None:
            found = {name: shares.place(name, tensor) for name, tensor in found.items()}
        model.load_state_dict(found, strict=True, assign=True)
        model.register_to_config(_name_or_path=str(folder))
        return model.eval().to(device)  # moves what the model computed at its making

    return read


def read_tensors(
    stored: Mapping[str, Stored],
    wanted: Mapping[str, tuple[str, torch.dtype]],
    device: torch.device,
    *,
    cuts: Mapping[str, Cut] = NO_CUTS,
) -> dict[str, Tensor]:
    """The wanted tensors under their new names, by which `cuts` names those of which a part alone is read. On a CPU
    one that needs neither cast nor cut stays in the mapped file, uncopied.
    """
    found: dict[str, Tensor] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for part in pool.map(lambda names: _read_part(stored, names, wanted, device, cuts), parts(stored, wanted)):
            found |= part
    return found


def parts(stored: Mapping[str, Stored], wanted: Mapping[str, object]) -> Iterator[list[str]]:
    """Names in the order of their data, together in runs of about PART bytes of one file."""
    run: list[str] = []
    size = 0
    for name, tensor in stored.items():
        if name not in wanted:
            continue
        if run and (stored[run[0]].file != tensor.file or size + tensor.size > PART):
            yield run
            run, size = [], 0
        run.append(name)
        size += tensor.size
    if run:
        yield run


def _read_part(
    stored: Mapping[str, Stored],
    names: Sequence[str],
    wanted: Mapping[str, tuple[str, torch.dtype]],
    device: torch.device,
    cuts: Mapping[str, Cut],
) -> dict[str, Tensor]:
    found = {}
    with safe_open(stored[names[0]].file, framework="pt", device="cpu") as file:
        for source in names:
            name, dtype = wanted[source]
            tensor = read_cut(file, source, cuts[name]) if name in cuts else file.get_tensor(source)
            found[name] = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
    return found


def read_cut(file: Any, name: str, cut: Cut) -> Tensor:
    """The part of a tensor of an open safetensors file; no other bytes are read."""
    tensor = file.get_slice(name)
    before = (slice(None),) * cut.dim
    return torch.cat([tensor[(*before, slice(start, stop))] for start, stop in cut.ranges], cut.dim)

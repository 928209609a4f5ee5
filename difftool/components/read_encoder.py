"""Reads this rank's part of a text encoder of transformers.

transformers renames, casts and ties what it loads by rules of its own. They are left to it: it is given a model whose
layers have the sizes of this rank, and in the place of each stored tensor something that reads a part of it.
"""

from collections.abc import Callable
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from difftool.components.check import Weights
from difftool.components.fit import check_transformers_fit
from difftool.components.read import Cut, Shares, read_cut
from difftool.errors import PlanError

WHOLE = "use stages.text_encoding.tp=1"


class StoredPart:
    """A tensor in an open file as transformers reads one: whole by `[...]`, which here is what a rank keeps of it."""

    def __init__(self, file: Any, name: str, cut: Cut | None):
        self._file, self._name, self._cut = file, name, cut

    def __getitem__(self, everything: EllipsisType) -> Tensor:
        if self._cut is not None:
            return read_cut(self._file, self._name, self._cut)
        tensor: Tensor = self._file.get_tensor(self._name)
        return tensor


def encoder_reader(
    kind: type[PreTrainedModel],
    folder: Path,
    weights: Weights,
    *,
    dtype: torch.dtype,
    device: torch.device,
    share: Callable[[nn.Module], Shares],
) -> Callable[[], PreTrainedModel]:
    """A function that reads the parts of a component folder's model that `share` leaves to this rank.

    Raises WeightsError for weights that do not fit, and PlanError where a layer is not stored as the model has it.
    """
    empty = check_transformers_fit(kind, weights, folder)
    if empty is None:
        raise PlanError(f"{folder} is quantized, and its tensors cannot be read in parts", hint=WHOLE)
    wanted = share(empty.model).cuts
    if made := sorted(wanted.keys() - empty.stored.keys()):
        raise PlanError(f"{folder}: {made[0]} is not stored as {kind.__name__} has it: it has no parts", hint=WHOLE)
    cuts = {empty.stored[name]: cut for name, cut in wanted.items()}

    def read() -> PreTrainedModel:
        files = {path: safe_open(path, framework="pt", device="cpu") for path in weights.files}
        parts = {name: StoredPart(files[stored.file], name, cuts.get(name)) for name, stored in weights.tensors.items()}
        model: PreTrainedModel = _sharing(kind, share).from_pretrained(
            None,
            config=kind.config_class.from_pretrained(folder, local_files_only=True),
            state_dict=parts,
            dtype=dtype,
            device_map={"": device},
        )
        model.__class__ = kind
        return model

    return read


def _sharing(kind: type[PreTrainedModel], share: Callable[[nn.Module], Shares]) -> type[PreTrainedModel]:
    """The class, with only this rank's part of each layer once it is made: before its loader looks for sizes."""

    def make(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, *args, **kwargs)
        share(self)

    shared: type[PreTrainedModel] = type(kind.__name__, (kind,), {"__init__": make, "__module__": kind.__module__})
    return shared

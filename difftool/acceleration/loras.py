"""LoRAs merged into the loaded weights."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import diffusers
from diffusers import ModelMixin
from torch import nn

from difftool.components.check import read_config
from difftool.components.fit import empty_model
from difftool.components.loaded import Components
from difftool.components.locate import locate_lora
from difftool.components.lora import ALL, NO_SHARES, TARGETS, Active, LoraSet
from difftool.components.lora_file import outline_lora
from difftool.components.lora_keys import DENOISER
from difftool.components.lora_match import check_share, match
from difftool.components.read import Shares
from difftool.errors import WeightsError
from difftool.facts import Applied
from difftool.planning.plan import LoraPlan

ROLES = ("denoising", "text_encoding")


def check(
    wanted: Sequence[LoraPlan],
    notify: Callable[..., None],
    denoisers: Mapping[str, Path],
    layer_names: Mapping[str, tuple[str, ...]],
) -> None:
    """Fetches the files and checks their headers, before the model loads: by themselves, and against the denoisers'
    configs, folders by component. Raises WeightsError.
    """
    files = [outline_lora(locate_lora(lora, lambda: notify("heartbeat"))) for lora in wanted]
    models = (
        {name: dict(empty_model(*of).named_parameters()) for name, of in _known(denoisers).items()} if files else {}
    )
    for lora, file in zip(wanted, files, strict=True):
        for name, parameters in models.items():
            targeted = lora.target == ALL or TARGETS[lora.target] == name
            if targeted and any(layer.module == DENOISER for layer in file.layers):
                check_share(match(file, parameters, DENOISER, layer_names), file.path.name, name, lora.min_match)


def _known(denoisers: Mapping[str, Path]) -> dict[str, tuple[type[ModelMixin], Path]]:
    """Class and folder of those that are models of diffusers."""
    configs = {name: read_config(folder) for name, folder in denoisers.items() if (folder / "config.json").is_file()}
    kinds = {name: getattr(diffusers, config.get("_class_name", ""), None) for name, config in configs.items()}
    return {
        name: (kind, denoisers[name])
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, ModelMixin)
    }


def open_set(
    components: Components,
    roles: Mapping[str, tuple[str, ...]],
    layer_names: Mapping[str, tuple[str, ...]],
    shares: Mapping[str, Shares] = NO_SHARES,
) -> LoraSet:
    """Room for LoRAs of the denoisers and, for files that have them, of the text encoders; `shares` are of those that
    this rank has a part of.
    """
    names = [name for role in ROLES for name in roles.get(role, ())]
    found = {name: components.modules.get(name) for name in names}
    modules = {name: module for name, module in found.items() if isinstance(module, nn.Module)}
    return LoraSet(modules, denoisers=roles["denoising"], original=layer_names, shares=shares)


def apply(loras: LoraSet, wanted: Sequence[LoraPlan], notify: Callable[..., None]) -> dict[str, Applied]:
    """Merges exactly these into the weights. What was done, under the name of the transform; nothing without LoRAs.

    Raises WeightsError for a file that does not fit, or is another than was planned.
    """
    start = time.perf_counter()
    for lora in wanted:
        file = loras.load(lora.nickname, locate_lora(lora, lambda: notify("heartbeat")), min_match=lora.min_match)
        if lora.sha256 not in (None, file.sha256):
            raise WeightsError(f"{file.path} has changed since the run was planned", hint="start the run again")
    active = [Active(lora.nickname, lora.strength, lora.target) for lora in wanted]
    if tuple(active) != loras.active:
        loras.set(active)
        names = ", ".join(lora.nickname for lora in wanted) or "none"
        notify("component_loaded", name="lora", detail=names, seconds=time.perf_counter() - start)
    return {"lora": Applied({"adapters": loras.describe()})} if wanted else {}

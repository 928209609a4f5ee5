"""The LoRAs of a loaded model: read by nickname, merged into its weights in the order they are set, taken out exactly.

    loras = LoraSet({"transformer": transformer}, denoisers=("transformer",))
    loras.load("style", Path("style.safetensors"))
    loras.set([Active("style", strength=0.8)])     # merges; replaces what was set before
    loras.unmerge()                                # the base weights, bit for bit
    loras.merge(strength=0.5)                      # what was set, again

Merging is in fp32 from a kept copy of the base weight, and rounds once: W + sum of strength * alpha / rank * B A. Two
LoRAs are two terms of that sum, added in their order, so that another order changes rounding and nothing else. The
copies are on the CPU, of the changed weights only, and are dropped when these are restored. Weights are written in
place: what holds them, such as a compiled graph, sees the change. A rank that has a part of a weight adds that part of
the same sum, so that the parts together are the merged weight, bit for bit.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from difftool.components.loaded import own_part
from difftool.components.lora_file import LoraFile, read_lora
from difftool.components.lora_keys import DENOISER
from difftool.components.lora_match import SHOWN, Change, Match, check_share, match
from difftool.components.read import NO_CUTS, Cut, Shares
from difftool.errors import PlanError, RecipeError

ALL = "all"
NO_SHARES: Mapping[str, Shares] = {}
TARGETS = {"transformer": "transformer", "transformer_2": "transformer_2", "critic": "fake_score_transformer"}
MERGEABLE = (torch.float32, torch.bfloat16, torch.float16)
Parameters = Mapping[str, Tensor]
# parameters in parts, each with what it can be changed within
Parts = Callable[[Parameters], Iterable[tuple[AbstractContextManager[None], Parameters]]]


@dataclass(frozen=True)
class Active:
    """A LoRA that is set: into the denoiser that `target` names, or into all that the file is for."""

    nickname: str
    strength: float = 1.0
    target: str = ALL


@dataclass(frozen=True)
class Loaded:
    """One file in memory, and what it changes in each module that it was matched with."""

    file: LoraFile
    min_match: float
    matches: dict[str, Match] = field(default_factory=dict)


class LoraSet:
    """The LoRAs of `modules`, by component name: the denoisers, and text encoders that a file may be for too.

    `original` is the family's table of its layers' names in the model's original code; `shares` say of what modules
    this rank has a part. A call that raises has changed no weight: everything is read and matched before the first one
    is touched.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        *,
        denoisers: Sequence[str],
        original: Mapping[str, tuple[str, ...]],
        shares: Mapping[str, Shares] = NO_SHARES,
    ):
        self._modules = dict(modules)
        self._whole = {
            name: _outlines(shares[name].whole if name in shares else dict(module.named_parameters()))
            for name, module in modules.items()
        }
        self._cuts = {name: share.cuts for name, share in shares.items()}
        self._denoisers = tuple(name for name in denoisers if name in self._modules)
        self._original = original
        self._loaded: dict[str, Loaded] = {}
        self._set: tuple[Active, ...] = ()
        self._merged: dict[str, tuple[Active, ...]] = {}
        self._kept: dict[tuple[str, str], Tensor] = {}
        self._parts: Parts = _at_once

    @property
    def loaded(self) -> dict[str, Path]:
        """The files that are in memory, by nickname."""
        return {nickname: loaded.file.path for nickname, loaded in self._loaded.items()}

    @property
    def active(self) -> tuple[Active, ...]:
        """What is set, in order; `merged` says whether it is in the weights."""
        return self._set

    @property
    def merged(self) -> dict[str, tuple[Active, ...]]:
        """What is in the weights now, by component."""
        return {name: every for name, every in self._merged.items() if every}

    def change_in(self, parts: Parts) -> None:
        """Changes weights in these parts from now on, one after the other: they may be away."""
        self._parts = parts

    def load(self, nickname: str, path: Path, *, min_match: float = 0.95) -> LoraFile:
        """Reads a file under a nickname; one that has not changed is not read again. Another file of a nickname that is
        set takes its predecessor out. Raises WeightsError.
        """
        known = self._loaded.get(nickname)
        if known is not None and known.file.is_still(path):
            self._loaded[nickname] = replace(known, min_match=min_match)
            return known.file
        file = read_lora(path)
        self.forget(nickname)
        self._loaded[nickname] = Loaded(file, min_match)
        return file

    def forget(self, nickname: str) -> None:
        """Takes a LoRA out of the weights, if it is in them, and out of memory."""
        if any(active.nickname == nickname for active in self._set):
            self.set([active for active in self._set if active.nickname != nickname])
        self._loaded.pop(nickname, None)

    def set(self, active: Sequence[Active]) -> None:
        """Merges exactly these, in this order, in place of what was set before; none restores the base.

        Raises RecipeError for a nickname that was not loaded or a target that the model does not have, WeightsError for
        a file that does not fit, PlanError for weights that cannot be merged into.
        """
        self._change(self._wanted(active))
        self._set = tuple(active)

    def merge(self, target: str = ALL, strength: float | None = None) -> None:
        """Merges what was set once more, after `unmerge`; `strength` is for every one of them, in place of its own."""
        again = [active if strength is None else replace(active, strength=strength) for active in self._set]
        wanted = self._wanted(again)
        self._change({name: wanted[name] for name in self._named(target)})

    def unmerge(self, target: str = ALL) -> None:
        """Restores the base weights, bit for bit. What was set stays set, for `merge`."""
        self._change(dict.fromkeys(self._named(target), ()))

    def describe(self) -> list[dict[str, object]]:
        """What is set, in order, as plain data: of each LoRA its file, its numbers and how much of it found a place."""
        return [self._record(active) for active in self._set]

    def _named(self, target: str) -> tuple[str, ...]:
        """The components of a target. Raises RecipeError."""
        if target == ALL:
            return tuple(self._modules)
        name = TARGETS.get(target, target)
        if name not in self._denoisers:
            known = " or ".join([ALL, *(t for t, n in TARGETS.items() if n in self._denoisers)])
            raise RecipeError(f"LoRA target {target}: this model has no {name}; use {known}")
        return (name,)

    def _wanted(self, active: Sequence[Active]) -> dict[str, tuple[Active, ...]]:
        """What each component's weights are to hold. A strength of 0 adds nothing, not even rounding."""
        places = [(one, self._matches(one)) for one in active]
        return {name: tuple(one for one, parts in places if one.strength and name in parts) for name in self._modules}

    def _matches(self, active: Active) -> dict[str, Match]:
        """What a LoRA changes, by component. Raises RecipeError, WeightsError where it does not fit, and PlanError for
        a pipeline without a denoiser.
        """
        loaded = self._loaded.get(active.nickname)
        if loaded is None:
            known = ", ".join(self._loaded) or "none"
            raise RecipeError(f"no LoRA is called {active.nickname!r}; loaded: {known}")
        if not self._denoisers:
            raise PlanError(
                f"{loaded.file.path.name} cannot be merged: this pipeline has no part that is known as its denoiser",
                hint="leave the LoRA out",
            )
        asked = {layer.module for layer in loaded.file.layers}
        named = [name for name in self._named(active.target) if self._module_of(name) in asked]
        found = {name: self._match(loaded, name) for name in named or self._denoisers}
        lost = [] if active.target != ALL else _keys(loaded.file, asked - {self._module_of(n) for n in self._modules})
        for name, part in found.items():
            missing = (*part.missing, *lost)
            check_share(replace(part, missing=missing), loaded.file.path.name, name, loaded.min_match)
        return found

    def _module_of(self, name: str) -> str:
        """How the keys of a file call a component."""
        return DENOISER if name in self._denoisers else name

    def _match(self, loaded: Loaded, name: str) -> Match:
        if name not in loaded.matches:
            original = self._original if name in self._denoisers else {}
            loaded.matches[name] = match(loaded.file, self._whole[name], self._module_of(name), original)
        return loaded.matches[name]

    @torch.no_grad()
    def _change(self, wanted: Mapping[str, tuple[Active, ...]]) -> None:
        """Makes each component's weights what these LoRAs make of the base."""
        pending = {name: every for name, every in wanted.items() if every != self._merged.get(name, ())}
        planned = {name: self._terms(name, every) for name, every in pending.items()}
        for name, terms in planned.items():
            parameters = dict(self._modules[name].named_parameters())
            touched = dict.fromkeys([*(key for owner, key in self._kept if owner == name), *terms])
            for opened, part in self._parts({key: parameters[key] for key in touched}):
                with opened:
                    self._write(name, part, terms)
            self._merged[name] = pending[name]

    def _write(self, name: str, parameters: Parameters, terms: Mapping[str, Sequence[tuple[Change, float]]]) -> None:
        """Makes each of these parameters of a component its base and the sum of its terms; without any, its base."""
        cuts = self._cuts.get(name, NO_CUTS)
        for key, parameter in parameters.items():
            weight = own_part(parameter)
            if key in terms:
                base = self._kept.setdefault((name, key), weight.to("cpu", copy=True))
                total = base.to(weight.device, torch.float32, copy=True)
                weight.copy_(_merged(total, terms[key], self._whole[name][key], cuts.get(key)))
            else:
                weight.copy_(self._kept.pop((name, key)))

    def _terms(self, name: str, every: Sequence[Active]) -> dict[str, list[tuple[Change, float]]]:
        """What is added to each parameter, in order, with its strength. Raises PlanError."""
        parameters = dict(self._modules[name].named_parameters())
        terms: dict[str, list[tuple[Change, float]]] = {}
        for active in every:
            for change in self._loaded[active.nickname].matches[name].changes:
                dtype = parameters[change.parameter].dtype
                if dtype not in MERGEABLE:
                    raise PlanError(
                        f"a LoRA cannot be merged into {name}.{change.parameter}, which is {str(dtype).split('.')[1]}",
                        hint="leave out the quantization of this model, or the LoRA",
                    )
                terms.setdefault(change.parameter, []).append((change, active.strength))
        return terms

    def _record(self, active: Active) -> dict[str, object]:
        loaded, parts = self._loaded[active.nickname], self._matches(active)
        pairs = [layer for layer in loaded.file.layers if layer.rank is not None]
        missing = [*loaded.file.unknown, *(key for part in parts.values() for key in part.missing)]
        covered = {self._module_of(name) for name in parts}
        return {
            "nickname": active.nickname,
            "file": loaded.file.path.name,
            "sha256": loaded.file.sha256,
            "strength": active.strength,
            "target": active.target,
            "rank": sorted({layer.rank for layer in pairs}),
            "alpha": sorted({float(layer.rank if layer.alpha is None else layer.alpha) for layer in pairs}),
            "modules": {
                name: {"layers": part.layers, "keys": len(part.keys), "of": len(part.keys) + len(part.missing)}
                for name, part in parts.items()
            },
            "missing": list(dict.fromkeys(missing))[:SHOWN],
            "repeated": sum(len(part.repeated) for part in parts.values()),
            "not_targeted": len(_keys(loaded.file, {layer.module for layer in loaded.file.layers} - covered)),
        }


def _outlines(parameters: Parameters) -> dict[str, Tensor]:
    """Their shapes: the parameters themselves may be put away, or be replaced and no longer needed."""
    return {name: torch.empty_like(parameter, device="meta") for name, parameter in parameters.items()}


def _at_once(parameters: Parameters) -> Iterable[tuple[AbstractContextManager[None], Parameters]]:
    return [(nullcontext(), parameters)]


def _keys(file: LoraFile, modules: set[str]) -> list[str]:
    """The file's keys for these modules."""
    return [key for layer in file.layers if layer.module in modules for key in layer.keys]


def _merged(total: Tensor, terms: Sequence[tuple[Change, float]], whole: Tensor, cut: Cut | None) -> Tensor:
    """The base weight in fp32 -> the merged one, in place. `total` is the part that `cut` leaves of the `whole`."""
    for change, strength in terms:
        delta = change.delta(whole, total.device)
        if cut is None:
            total[change.start : change.stop].add_(delta, alpha=strength)
        elif cut.dim == 0:
            _add_rows(total, delta, change, strength, cut)
        else:
            part = torch.cat([delta.narrow(cut.dim, start, stop - start) for start, stop in cut.ranges], cut.dim)
            total[change.start : change.stop].add_(part, alpha=strength)
    return total


def _add_rows(total: Tensor, delta: Tensor, change: Change, strength: float, cut: Cut) -> None:
    """Adds those of a change's rows that are among the ranges of the cut."""
    before = 0  # rows of the ranges that came before
    for start, stop in cut.ranges:
        first, last = max(start, change.start), min(stop, change.stop)
        if first < last:
            rows = delta[first - change.start : last - change.start]
            total[before + first - start : before + last - start].add_(rows, alpha=strength)
        before += stop - start

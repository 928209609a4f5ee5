"""Loading a checkpoint folder's components: classes by name, one dtype each, straight to the device."""

import importlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers

from difftool.components.check import Weights, check_folder, read_index
from difftool.components.fit import check_finite, check_transformers_fit
from difftool.components.loaded import Components
from difftool.components.processors import load_processor
from difftool.components.read import Shares, model_reader
from difftool.components.read_encoder import encoder_reader
from difftool.components.replaced import Place, single_file_reader
from difftool.errors import PlanError, WeightsError

LIBRARIES = ("diffusers", "transformers")
TOKENIZER = ["transformers", "AutoTokenizer"]
NOTHING: Mapping[str, Place] = {}
NO_SHARES: Mapping[str, Callable[[torch.nn.Module], Shares]] = {}
NO_DEVICES: Mapping[str, torch.device] = {}
NO_READERS: Mapping[str, Callable[[], Any]] = {}
WHOLE = "use parallel.tp=1, parallel.hsdp=none and stages.text_encoding.tp=1, or a folder in the layout of diffusers"
ABSENT = [None, None]  # how model_index.json says that a pipeline goes without a component


def load_components(
    names: Sequence[str],
    holder: str | None,
    folder: Path,
    *,
    optional: Sequence[str],
    tokenizers: Sequence[str],
    dtypes: Mapping[str, torch.dtype],
    device: torch.device,
    loaded: Callable[..., None],
    replaced: Mapping[str, Place] = NOTHING,
    own: Mapping[str, Callable[[], Any]] = NO_READERS,
    shares: Mapping[str, Callable[[torch.nn.Module], Shares]] = NO_SHARES,
    later: Collection[str] = (),
    devices: Mapping[str, torch.device] = NO_DEVICES,
) -> Components:
    """Checks everything named, then loads it into the diffusers pipeline class `holder`, but for those `later`.

    `optional` components are None where the folder has none; of `tokenizers` no more is loaded, whatever processor the
    folder has. `dtypes` by component, `devices` of those that do not go to `device`; `loaded(name=, detail=, seconds=)`
    reports each; those `replaced` lie elsewhere, and `own` are readers of components that the family has classes for;
    of those in `shares` this rank keeps a part alone. Headers, shapes and classes of all components are checked before
    memory is taken for any; numbers that are not finite are found once they lie on the device. Raises WeightsError, and
    PlanError for a package that a component needs and this machine lacks, or one that cannot be read in parts.
    """
    if both := sorted(replaced.keys() & own.keys()):
        raise PlanError(f"model.components.{both[0]}: the family reads it from its own weight_sources; leave it out")
    if both := sorted(shares.keys() & own.keys()):
        raise PlanError(f"{both[0]} is read whole from the family's own weight_sources, not in parts", hint=WHOLE)
    index = read_index(folder)
    listed = [*names, *(name for name in optional if index.get(name) not in (None, ABSENT))]
    present = [name for name in listed if name not in own]
    weights = check_folder(folder, present, elsewhere=replaced)
    weights |= {name: found for name, place in replaced.items() if (found := place.check()) is not None}
    places = {name: replaced.get(name, Place(folder / name)) for name in (*present, *own)}
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    kinds = {name: _class(TOKENIZER if name in tokenizers else index[name]) for name in present}

    def reader(name: str) -> Callable[[], Any]:
        share, own_device = shares.get(name), devices.get(name, device)
        known = (kinds[name], places[name], weights.get(name))
        return _reader(*known, dtype=dtypes.get(name), device=own_device, share=share)

    readers = {**{name: reader(name) for name in present}, **own}

    def load(name: str) -> Any:
        start = time.perf_counter()
        module = readers[name]()
        if isinstance(module, torch.nn.Module):
            module.requires_grad_(False).eval().to(devices.get(name, device))
            check_finite(module, places[name].folder, weights.get(name))
            loaded(name=name, detail=_describe(module), seconds=time.perf_counter() - start)
        return module

    put_off: dict[str, Callable[[], Any]] = {name: partial(load, name) for name in readers if name in later}
    read = {name: load(name) for name in readers if name not in put_off}
    modules = {**dict.fromkeys((*optional, *put_off)), **read}
    return Components(modules, hold(holder, modules, index), put_off)


def hold(holder: str | None, modules: Mapping[str, Any], index: Mapping[str, Any]) -> Any:
    """The diffusers pipeline around the modules, with the settings that model_index.json holds for it; without one,
    an object that only has them as its `config`.
    """
    if holder is None:
        return SimpleNamespace(config=index)
    kind = getattr(diffusers, holder)
    taken = signature(kind).parameters
    settings = {key: value for key, value in index.items() if key in taken and not _is_component(value)}
    return kind(**modules, **settings)


def _is_component(value: object) -> bool:
    """Whether this entry of model_index.json names a library and a class, or none of both."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(name, str | None) for name in value)


def component_class(folder: Path, name: str) -> type:
    """The class of a component, by the folder's model_index.json. Raises WeightsError."""
    entry = read_index(folder).get(name)
    if not isinstance(entry, list) or not entry[0]:
        raise WeightsError(f"{folder / 'model_index.json'} lists no {name}")
    return _class(entry)


def _class(entry: list[str]) -> type:
    library, class_name = entry
    kind: type | None = getattr(importlib.import_module(library), class_name, None) if library in LIBRARIES else None
    if kind is None:
        raise WeightsError(
            f"model_index.json asks for {library}.{class_name}, which is not a class of {' or '.join(LIBRARIES)}",
            hint="install a newer diffusers or transformers, if it is one of theirs",
        )
    return kind


def _reader(
    kind: Any,
    place: Place,
    weights: Weights | None,
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    share: Callable[[torch.nn.Module], Shares] | None,
) -> Callable[[], Any]:
    """A function that loads one component, which is known to fit its config."""
    folder = place.folder
    with _told(kind, folder):
        if share is not None and (place.file is not None or weights is None):
            raise PlanError(f"{place.file or folder}: {kind.__name__} cannot be read in parts", hint=WHOLE)
        if place.file is not None:
            assert weights is not None
            read: Callable[[], Any] = single_file_reader(
                kind, place, weights, dtype=dtype or torch.float32, device=device
            )
        elif issubclass(kind, transformers.ProcessorMixin):
            read = partial(load_processor, kind, folder)
        elif dtype is None or weights is None:
            read = partial(kind.from_pretrained, folder, local_files_only=True)
        elif issubclass(kind, diffusers.ModelMixin):
            read = model_reader(kind, folder, weights, dtype=dtype, device=device, share=share)
        elif share is not None:
            read = encoder_reader(kind, folder, weights, dtype=dtype, device=device, share=share)
        else:
            check_transformers_fit(kind, weights, folder)
            straight = {"local_files_only": True, "use_safetensors": True, "device_map": {"": device}}
            read = partial(kind.from_pretrained, folder, dtype=dtype, **straight)

    def load() -> Any:
        with _told(kind, folder):
            return read()

    return load


@contextmanager
def _told(kind: type, folder: Path) -> Iterator[None]:
    """Errors of the libraries in our words."""
    try:
        yield
    except ImportError as error:
        raise PlanError(f"{kind.__name__} needs a package that is not installed: {error}") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise WeightsError(f"{folder} cannot be loaded as {kind.__name__}: {error}") from error


def _describe(module: torch.nn.Module) -> str:
    count = sum(p.numel() for p in module.parameters())
    size = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"
    return f"{size} parameters, {str(next(module.parameters()).dtype).removeprefix('torch.')}"

"""Flat files, SGLang's form of a configuration: flag names with underscores as keys, turned into a recipe's sections.

Positions are kept, so every later message points into the flat file.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

from difftool.recipe.explain import show
from difftool.recipe.flag_table import FLAGS, FOREIGN_FLAGS, Flag
from difftool.recipe.flags import LORA, split_file_name
from difftool.recipe.hints import nearest
from difftool.recipe.keys import fields_of
from difftool.recipe.nodes import Fault, Key, Node, plain
from difftool.recipe.schema import Recipe

TILE_SIZES = tuple(f"tile_sample_{what}" for what in ("min_height", "min_width", "min_num_frames"))
TILE_STRIDES = tuple(f"tile_sample_{what}" for what in ("stride_height", "stride_width", "stride_num_frames"))
DIRECT = {
    "sp_size": "parallel.sp",
    "precision": "stages.denoising.precision",
    "attention_backend": "stages.denoising.attention.name",
    "diffusers_attention_backend": "stages.denoising.attention.name",
    "mask_strategy_file_path": "stages.denoising.attention.mask_strategy_file_path",
    "diffusers_kwargs": "model.diffusers_kwargs",
    "host": "serve.host",
    "port": "serve.port",
    **{f"vae_config.{name}": f"stages.decoding.tiling.{name}" for name in (*TILE_SIZES, *TILE_STRIDES)},
}
SWITCHES: Mapping[str, tuple[str, object, object]] = {  # key, what true means, what false means
    "vae_sp": ("stages.decoding.parallel", "tiled", "none"),
    "vae_config.use_tiling": ("stages.decoding.tiling.name", "on", "none"),
    "vae_config.use_parallel_decode": ("stages.decoding.parallel", "tiled", "none"),
}
FIXED: Mapping[str, tuple[tuple[bool, ...], str]] = {  # values that say what difftool does anyway, and the way out
    "vae_config.load_encoder": ((True, False), ""),  # the encoder works exactly when there is a picture to encode
    "vae_config.load_decoder": ((True,), "difftool always decodes"),
    "save_output": ((True,), "say --no-save-output on the command line"),
    "return_frames": ((False,), "say --return-frames on the command line"),
}
LISTS = {name.lstrip("-").replace("-", "_"): field for name, field in LORA.items()}


@dataclass(frozen=True)
class _Entry:
    """One recipe key that a flat key sets."""

    key: str
    node: Node
    name: str
    refined_by: str = ""


def is_flat(root: Node) -> bool:
    """Whether a file is flat: no key of it is a section of a recipe, and one is a flag's."""
    keys = set(root.mapping)
    return not keys & set(fields_of(Recipe)) and bool(keys & set(flat_keys()))


@cache
def flat_keys() -> Mapping[str, Flag | None]:
    """Every key of a flat file, with its flag if it has one."""
    named = {name.lstrip("-").replace("-", "_"): f for f in FLAGS for name in f.names if name.startswith("--")}
    nested = {name.partition(".")[0]: None for name in (*DIRECT, *SWITCHES, *FIXED)}
    return {**nested, **named}


def flat_to_sections(root: Node, faults: list[Fault]) -> Node:
    """The sectioned form of a flat file. What cannot be translated is a fault and left out."""
    entries: list[_Entry] = list(_lora(root, faults))
    for name, node in root.mapping.items():
        if name not in flat_keys():
            faults.append(Fault(node.key, name, _unknown(name, flat_keys())))
        elif name == "vae_config" and node.is_mapping:
            for inner, child in node.mapping.items():
                entries += _entries(f"vae_config.{inner}", child, faults)
        elif name not in LISTS:
            entries += _entries(name, node, faults)
    return _assemble(entries, root, faults)


def _entries(name: str, node: Node, faults: list[Fault]) -> Iterator[_Entry]:
    flag = flat_keys().get(name)
    if node.value is None:  # null is the default
        return
    if name in DIRECT:
        yield _Entry(DIRECT[name], node, name)
    elif name in SWITCHES:
        key, on, off = SWITCHES[name]
        yield from _switch(name, (key,), on, off, node, faults)
    elif name in FIXED:
        _check_fixed(name, node, faults)
    elif flag is None:
        known = [key for key in (*DIRECT, *SWITCHES, *FIXED) if key.startswith("vae_config.")]
        is_section = name == "vae_config"
        message = f"{name}: {show(plain(node))} is not a mapping" if is_section else _unknown(name, known)
        faults.append(Fault(node.mark if is_section else node.key, name, message))
    elif flag.kind == "switch":
        entries = _switch(name, (flag.key, *flag.also), flag.value, flag.off, node, faults)
        yield from (replace(entry, refined_by=flag.refined_by) for entry in entries)
    else:
        yield from SPECIAL.get(flag.kind, _direct)(name, flag, node, faults)


def _direct(name: str, flag: Flag, node: Node, faults: list[Fault]) -> Iterator[_Entry]:
    yield _Entry(flag.key, node, name)


def _switch(
    name: str, keys: tuple[str, ...], on: object, off: object, node: Node, faults: list[Fault]
) -> Iterator[_Entry]:
    if not isinstance(node.value, bool):
        faults.append(Fault(node.mark, name, f"{name}: {show(plain(node))} is not true or false"))
        return
    value = on if node.value else off
    if value is not None:
        yield from (_Entry(key, replace(node, value=value), name) for key in keys)


def _check_fixed(name: str, node: Node, faults: list[Fault]) -> None:
    allowed, way_out = FIXED[name]
    if not any(node.value is value for value in allowed):
        words = way_out or "write true or false"
        faults.append(Fault(node.mark, name, f"{name}: {show(plain(node))} is not available; {words}"))


def _stage_modes(name: str, flag: Flag, node: Node, faults: list[Fault]) -> Iterator[_Entry]:
    if not node.is_mapping:
        faults.append(Fault(node.mark, name, f"{name}: {show(plain(node))} is not a mapping of stages to modes"))
        return
    for stage, mode in node.mapping.items():
        yield _Entry(f"stages.{stage}.offload", mode, name)


def _devices(name: str, flag: Flag, node: Node, faults: list[Fault]) -> Iterator[_Entry]:
    if isinstance(node.value, str):
        parts = [part.strip() for part in node.value.split(",")]
        numbers = tuple(replace(node, value=int(part) if part.isdecimal() else part) for part in parts)
        node = replace(node, value=numbers)
    yield _Entry(flag.key, node, name)


def _file_name(name: str, flag: Flag, node: Node, faults: list[Fault]) -> Iterator[_Entry]:
    if not isinstance(node.value, str):
        yield _Entry(flag.key, node, name)
        return
    yield from (_Entry(key, replace(node, value=part), name) for key, part in split_file_name(flag, node.value))


Translate = Callable[[str, Flag, Node, list[Fault]], Iterator[_Entry]]
SPECIAL: Mapping[str, Translate] = {"stage_mode": _stage_modes, "devices": _devices, "file_name": _file_name}


def _lora(root: Node, faults: list[Fault]) -> Iterator[_Entry]:
    given = {name: node for name, node in root.mapping.items() if name in LISTS and node.value is not None}
    if not given:
        return
    lists = {name: node.items if node.is_list else (node,) for name, node in given.items()}
    first = next(iter(given.values()))
    if "lora_path" not in lists or len({len(items) for items in lists.values()}) > 1:
        counts = ", ".join(f"{len(items)} {name}" for name, items in lists.items())
        faults.append(Fault(first.mark, "model.lora", f"{counts}; give one of each for every lora_path"))
        return
    entries = tuple(
        replace(lists["lora_path"][i], value={LISTS[name]: items[i] for name, items in lists.items()})
        for i in range(len(lists["lora_path"]))
    )
    yield _Entry("model.lora", replace(first, value=entries), "lora_path")


def _assemble(entries: list[_Entry], root: Node, faults: list[Fault]) -> Node:
    taken: dict[str, _Entry] = {}
    for entry in entries:
        other = taken.get(entry.key)
        if other is None or _refines(entry, other):
            taken[entry.key] = entry
        elif plain(other.node) != plain(entry.node) and not _refines(other, entry):
            line = f"{other.name} on line {other.node.key.line}" if other.node.key.line else other.name
            message = f"{entry.name}: says something else than {line}; both are {entry.key}"
            faults.append(Fault(entry.node.mark, entry.key, message))
    sections = replace(root, value={})
    for entry in taken.values():
        sections = _placed(sections, tuple(entry.key.split(".")), entry.node)
    return sections


def _refines(entry: _Entry, other: _Entry) -> bool:
    return bool(other.refined_by) and other.refined_by == "--" + entry.name.replace("_", "-")


def _placed(parent: Node, path: Key, node: Node) -> Node:
    if len(path) == 1:
        return replace(parent, value={**parent.mapping, path[0]: node})
    section = parent.mapping.get(path[0], Node({}, node.key, node.key))
    return replace(parent, value={**parent.mapping, path[0]: _placed(section, path[1:], node)})


def _unknown(name: str, known: Mapping[str, object] | list[str]) -> str:
    foreign = FOREIGN_FLAGS.get("--" + name.replace("_", "-"))
    if foreign is not None:
        return f"{name}: unknown field; difftool says {foreign.lstrip('-').replace('-', '_')}"
    close = nearest(name, known)
    return f"{name}: unknown field, did you mean {close!r}?" if close else f"{name}: unknown field in a flat file"

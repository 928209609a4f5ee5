"""Decoding in tiles, by one rank or all of a replica, and one picture at a time: less memory and time for the VAE."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from difftool.facts import Applied, Refused
from difftool.parallel import tiles
from difftool.parallel.mesh import Line

ALONE = Line()


def resolve(
    tiling: str | Mapping[str, Any], *, slicing: bool, kind: type, parallel: str = "auto", ranks: int = 1
) -> Applied | Refused:
    """`kind` is the class of the checkpoint's VAE. `auto` decodes at once, which is exact; tiles are blended.

    `parallel` deals the tiles to the `ranks` of a replica, which changes no pixel: `auto` deals those that there are,
    `tiled` asks for them. Raises nothing: sizes of tiles that this class does not take are refused by name.
    """
    asked = {"name": tiling} if isinstance(tiling, str) else dict(tiling)
    name = asked.pop("name")
    dealt = parallel != "none" and ranks > 1 and kind.__name__ in tiles.DEALT
    if parallel == "tiled":
        if not dealt:
            return Refused(f"stages.decoding.parallel: tiles of {kind.__name__} cannot be dealt out exactly; use none")
        name = "on" if name == "auto" else name
    sizes = {key: value for key, value in asked.items() if value is not None}
    if name != "on" and sizes:
        return Refused(f"stages.decoding.tiling has {', '.join(sizes)}, but is {name}; set its name to on")
    unable = [way for way in ("tiling", "slicing") if not hasattr(kind, f"enable_{way}")]
    for way in [way for way, wanted in (("tiling", name == "on"), ("slicing", slicing)) if wanted and way in unable]:
        return Refused(f"stages.decoding.{way}: {kind.__name__} has none; leave it out")
    taken = signature(kind.enable_tiling).parameters if name == "on" else {}
    if foreign := sorted(sizes.keys() - set(taken)):
        known = ", ".join(key for key in taken if key.startswith("tile_")) or "no sizes"
        return Refused(f"stages.decoding.tiling.{foreign[0]}: {kind.__name__} does not take it; it takes {known}")
    detail = {"tiling": "on" if name == "on" else "none", **sizes, "slicing": slicing}
    return Applied({**detail, "ranks": ranks} if dealt else detail)


def apply(module: Any, applied: Applied, line: Line = ALONE) -> None:
    """Sets the VAE's own switches, and deals its tiles to the ranks of the line. Source: diffusers' `enable_tiling` and
    `enable_slicing` of each class.
    """
    detail = dict(applied.detail)
    if detail.pop("ranks", 1) > 1:
        tiles.apply(module, line)
    if detail.pop("slicing"):
        module.enable_slicing()
    if detail.pop("tiling") == "on":
        module.enable_tiling(**detail)

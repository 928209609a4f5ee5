"""What to say to someone whose shell still holds SGLang's cache variables: they steer nothing here, recipes do."""

from collections.abc import Mapping

PREFIX = "SGLANG_CACHE_DIT_"
SECONDARY = "SECONDARY_"  # the second transformer's own settings
RECIPE_KEYS = {
    "ENABLED": ("backend",),
    "FN": ("fn_compute_blocks",),
    "BN": ("bn_compute_blocks",),
    "WARMUP": ("max_warmup_steps",),
    "RDT": ("residual_diff_threshold",),
    "MC": ("max_continuous_cached_steps",),
    "TAYLORSEER": ("taylorseer", "enabled"),
    "TS_ORDER": ("taylorseer", "order"),
    "SCM_PRESET": ("scm", "preset"),
    "SCM_POLICY": ("scm", "policy"),
    "SCM_COMPUTE_BINS": ("scm", "compute_bins"),
    "SCM_CACHE_BINS": ("scm", "cache_bins"),
}
_SWITCHES = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def cache_variables_warning(environment: Mapping[str, str]) -> str | None:
    """The warning with the recipe lines that do the same; None where no such variable is set."""
    given = {name.removeprefix(PREFIX): value for name, value in environment.items() if name.startswith(PREFIX)}
    if not given:
        return None
    names = ", ".join(PREFIX + name for name in given)
    lines = [f"warning: {names}: set, but difftool reads no such variable; in the recipe, write"]
    lines += _lines({"cache": _section(given)}, indent=1)
    lines += [f"  # {PREFIX}{name} has no counterpart" for name in given if _path(name) is None]
    return "\n".join(lines)


def _path(name: str) -> tuple[str, ...] | None:
    if name.startswith(SECONDARY):
        inner = RECIPE_KEYS.get(name.removeprefix(SECONDARY))
        return ("secondary", *inner) if inner else None
    return RECIPE_KEYS.get(name)


def _section(given: Mapping[str, str]) -> dict[str, object]:
    section: dict[str, object] = {}
    for name in (*RECIPE_KEYS, *(SECONDARY + key for key in RECIPE_KEYS)):  # in the recipe's order
        path = _path(name)
        if name in given and path:
            inner = section
            for key in path[:-1]:
                inner = inner.setdefault(key, {})  # type: ignore[assignment]
            inner[path[-1]] = _value(path[-1], given[name])
    return section


def _value(key: str, text: str) -> str:
    switch = _SWITCHES.get(text.strip().lower())
    if key == "backend":
        return "none" if switch is False else "dbcache"
    if key == "enabled" and switch is not None:
        return str(switch).lower()
    return f"[{', '.join(text.replace(',', ' ').split())}]" if key.endswith("_bins") else text.strip()


def _lines(section: Mapping[str, object], *, indent: int) -> list[str]:
    lines = []
    for key, value in section.items():
        if isinstance(value, Mapping):
            lines += [f"{'  ' * indent}{key}:", *_lines(value, indent=indent + 1)]
        else:
            lines.append(f"{'  ' * indent}{key}: {value}")
    return lines

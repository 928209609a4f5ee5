"""Precision of each stage's modules. It takes effect while weights load, so that each is cast once."""

from collections.abc import Mapping, Sequence

from difftool.facts import Applied, Refused
from difftool.platforms import Platform


def resolve(
    spec: Mapping[str, str | Sequence[str]], roles: Mapping[str, tuple[str, ...]], platform: Platform
) -> Applied | Refused:
    """`spec` by stage role -> Applied with a precision for every module of the role; `auto` is the platform's own."""
    chosen: dict[str, str] = {}
    for role, modules in roles.items():
        asked = spec.get(role, "auto")
        each = [asked] * len(modules) if isinstance(asked, str) else list(asked)
        if len(each) != len(modules):
            names = ", ".join(modules)
            return Refused(f"stages.{role}.precision lists {len(each)} values for {len(modules)} modules: {names}")
        for name, precision in zip(modules, each, strict=True):
            chosen[name] = platform.default_precision(role) if precision == "auto" else precision
            if not platform.supports(chosen[name]):
                return Refused(f"{platform.name} does not compute in {chosen[name]} (stages.{role}.precision)")
    return Applied(chosen)

"""Precision of each stage's modules. It takes effect while weights load, so that each is cast once."""

from collections.abc import Mapping, Sequence

from difftool.facts import Applied, Refused
from difftool.platforms.base import Platform


def resolve(
    spec: Mapping[str, str | Sequence[str]],
    roles: Mapping[str, tuple[str, ...]],
    platform: Platform,
    *,
    keep_fp32: Mapping[str, str],
) -> Applied | Refused:
    """`spec` by stage role -> Applied with a precision for every module of the role; `auto` is the platform's own.

    `keep_fp32` names stages that `auto` leaves in fp32, and that fp16 breaks, each with the reason.
    """
    chosen: dict[str, str] = {}
    for role, modules in roles.items():
        asked = spec.get(role, "auto")
        each = [asked] * len(modules) if isinstance(asked, str) else list(asked)
        if len(each) != len(modules):
            names = ", ".join(modules)
            return Refused(f"stages.{role}.precision lists {len(each)} values for {len(modules)} modules: {names}")
        for name, precision in zip(modules, each, strict=True):
            auto = "fp32" if role in keep_fp32 else platform.default_precision(role)
            chosen[name] = auto if precision == "auto" else precision
            if chosen[name] == "fp16" and role in keep_fp32:
                return Refused(f"stages.{role}.precision=fp16: {keep_fp32[role]}; use fp32 or bf16")
            if not platform.supports(chosen[name]):
                return Refused(f"{platform.name} does not compute in {chosen[name]} (stages.{role}.precision)")
    return Applied(chosen)

"""TeaCache's threshold and coefficients: what a recipe gives and, for `auto`, what is published for the pipeline."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from difftool.facts import TeaCacheFit


def tea_settings(spec: Mapping[str, Any], published: TeaCacheFit | None) -> dict[str, Any]:
    """`threshold` and `coefficients` of a recipe's `cache` section; `auto` stays where nothing is published."""
    known = asdict(published) if published is not None else {}
    asked = {key: spec["teacache"][key] for key in ("threshold", "coefficients")}
    return {key: known.get(key, value) if value == "auto" else value for key, value in asked.items()}


def unpublished(spec: Mapping[str, Any], published: TeaCacheFit | None) -> str | None:
    """What is wrong where `auto` stands for nothing; None where every setting is known."""
    keys = [f"cache.teacache.{key}" for key, value in tea_settings(spec, published).items() if value == "auto"]
    if not keys:
        return None
    return f"{' and '.join(keys)}: nothing is published for this pipeline; give what `difftool calibrate` finds"

"""A pipeline that is watched from outside books on one stage what ours books on several: to compare, ours do too."""

from collections.abc import Sequence
from dataclasses import replace

from difftool.facts import STAGE_NAMES
from difftool.report.measured import Measured
from difftool.report.verdict import Series

HOLDS_ALL = "text_encoding"
BEFORE = STAGE_NAMES[: STAGE_NAMES.index("denoising")]
NOTE = f"{HOLDS_ALL} is compared as all that comes before the denoising, on both sides"


def book_alike(base: Measured, other: Measured) -> tuple[Measured, Measured]:
    """Both dumps with the base's stages before the denoising as one, as the `other` has them, and a note of it."""
    parts = [name for name in BEFORE if name in base.series]
    if HOLDS_ALL not in other.series or HOLDS_ALL not in parts or not set(parts) - set(other.series):
        return base, other
    whole = [base.series[name] for name in parts]
    together = Series(_sums([part.values for part in whole]), _sums([part.per_run for part in whole]))
    rest = {name: series for name, series in base.series.items() if name not in parts}
    stages = tuple(name for name in base.stages if name == HOLDS_ALL or name not in parts)
    folded = replace(base, stages=stages, series={HOLDS_ALL: together, **rest})
    return folded, replace(other, notes=(*other.notes, NOTE))


def _sums(columns: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(sum(row) for row in zip(*columns, strict=True))

"""TeaCache's polynomial: how much the blocks' output changes from step to step, by how much their input does."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import fmean

from difftool.errors import PlanError
from difftool.report.reuse import CacheUse

DEGREE = 4  # that of every published one


@dataclass(frozen=True)
class Fit:
    """`coefficients`, highest power first, of so many `points`. `r2` is the share of the output's variance that they
    explain, `rms` what is left, in the unit of a relative change; `mean` is the mean change of the output.
    """

    coefficients: tuple[float, ...]
    points: int
    r2: float
    rms: float
    mean: float


def measured_changes(uses: Iterable[CacheUse]) -> list[tuple[float, float]]:
    """(change of the input, change of the output) of every step of a run that measured both."""
    found = []
    for denoiser in (each for use in uses for each in use.denoisers.values()):
        inputs = next(iter(denoiser.changes.values()))
        found += [
            (one, other)
            for one, other in zip(inputs, denoiser.outputs, strict=True)
            if one is not None and other is not None
        ]
    return found


def fit_changes(changes: Sequence[tuple[float, float]], degree: int = DEGREE) -> Fit:
    """Least squares. Raises PlanError for fewer unlike points than the polynomial has coefficients."""
    unlike = len({one for one, _ in changes})
    if unlike <= degree:
        raise PlanError(
            f"calibrate: {unlike} unlike changes do not decide the {degree + 1} coefficients of degree {degree}",
            hint="use more steps or more prompts, or a lower --degree",
        )
    coefficients, outputs = _least_squares(changes, degree), [output for _, output in changes]
    mean = fmean(outputs)
    left = sum((output - _value(coefficients, one)) ** 2 for one, output in changes)
    total = sum((output - mean) ** 2 for output in outputs)
    return Fit(
        coefficients=coefficients,
        points=len(changes),
        r2=1 - left / total if total else 1.0,
        rms=(left / len(changes)) ** 0.5,
        mean=mean,
    )


def _least_squares(changes: Sequence[tuple[float, float]], degree: int) -> tuple[float, ...]:
    """The normal equations, solved in fractions: the powers of small numbers are nearly the same in floats."""
    points = [(Fraction(one), Fraction(other)) for one, other in changes]
    moments = [sum((x**power for x, _ in points), Fraction()) for power in range(2 * degree + 1)]
    rows = [[*moments[i : i + degree + 1], sum((y * x**i for x, y in points), Fraction())] for i in range(degree + 1)]
    for i, pivot in enumerate(rows):
        for j, row in enumerate(rows):
            if j != i:
                factor = row[i] / pivot[i]
                rows[j] = [value - factor * own for value, own in zip(row, pivot, strict=True)]
    return tuple(float(rows[i][-1] / rows[i][i]) for i in range(degree, -1, -1))


def _value(coefficients: Sequence[float], at: float) -> float:
    """Highest power first."""
    total = 0.0
    for coefficient in coefficients:
        total = total * at + coefficient
    return total

"""Which cases stand for their families in the fast tests."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from families.cases import Case


def first_of_each(cases: Iterable[Case]) -> Iterator[Any]:
    """Names of cases as parameters: the first of a family stands for it; the others are slow."""
    seen = set[str]()
    for case in cases:
        yield pytest.param(case.name, id=case.name, marks=pytest.mark.slow if case.family in seen else ())
        seen.add(case.family)

"""How to build a tiny checkpoint of each family: real classes, random weights, seconds on a CPU.

A module beside this file is a family; its CASES are checked by the whole conformance suite.
"""

import importlib
import pkgutil

from families.cases.case import Case

SHARED = ("case", "parts")
MODULES = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in SHARED)
CASES: tuple[Case, ...] = tuple(
    case for name in MODULES for case in importlib.import_module(f"families.cases.{name}").CASES
)

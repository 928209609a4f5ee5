"""Importing cache-dit, which reads its own environment variables and changes classes of others as it is imported."""

import importlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

INSTALL = "pip install 'difftool[cache]'"
PREFIX = "CACHE_DIT_"
PATCHED = ("warning_once", "info_once")  # of logging.Logger


def is_installed() -> bool:
    return find_spec("cache_dit") is not None


def load_dbcache() -> Callable[..., Any]:
    """The class that caches with it."""
    with _quietly():
        made: Callable[..., Any] = importlib.import_module("difftool.acceleration.dbcache").BlockCache
    return made


@contextmanager
def _quietly() -> Iterator[None]:
    """Its variables steer nothing, its loggers say nothing, and logging.Logger stays as it was."""
    steering = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(PREFIX)}
    had = {name: vars(logging.Logger)[name] for name in PATCHED if name in vars(logging.Logger)}
    try:
        yield
    finally:
        os.environ.update(steering)
        for name in PATCHED:
            if name in had:
                setattr(logging.Logger, name, had[name])
            elif name in vars(logging.Logger):
                delattr(logging.Logger, name)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.lower().startswith("cache_dit") and isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.setLevel(logging.CRITICAL)

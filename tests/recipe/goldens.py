"""Reads the files of cases: `==== title`, the recipe, `----`, and everything difftool says of it."""

import re
from pathlib import Path


def read_cases(name: str) -> list[tuple[str, str, str]]:
    """(title, recipe, message) of each case."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    pieces = re.split(r"^==== (.+)\n", text, flags=re.MULTILINE)[1:]
    cases = zip(pieces[::2], pieces[1::2], strict=True)
    return [(title, *body.rstrip("\n").split("----\n")) for title, body in cases]

"""Puts the stand-in where a shell finds `nsys`."""

import sys
from pathlib import Path

STANDIN = Path(__file__).with_name("standin.py")


def install_nsys(folder: Path) -> Path:
    """The folder for PATH."""
    program = folder / "bin" / "nsys"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STANDIN}" "$@"\n')
    program.chmod(0o755)
    return program.parent

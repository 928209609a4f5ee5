"""Whether `difftool bench` sees a slowdown: a recipe against itself, with a sleep in every denoising step of one arm.

    python scripts/inject_slowdown.py builtin:shapes-image -p "a red circle"             # must end with exit code 10
    python scripts/inject_slowdown.py builtin:shapes-image -p "a red circle" --share 0   # and this must not

The slow arm is `--arm slow=@PYTHON` of an environment that sleeps: this Python, whose workers find a `sitecustomize`
that adds 5 % (`--share`) of its time to each step. A processor that slept begins slower, which is measured too; with
`--awake` it waits in a loop. Other flags, such as `--repeats 16`, go to `difftool bench --gate`.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SLEEP = """import sys

if "difftool.worker" in sys.orig_argv:
    import time

    from difftool.profiling.timers import Timer

    def loop(seconds):
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass

    mark = Timer.step
    begun = {{}}

    def step(self):
        self.platform.synchronize()
        if self._steps:  # not the mark before the first step
            {wait}({share} * (time.perf_counter() - begun[self]))
        mark(self)
        begun[self] = time.perf_counter()

    Timer.step = step
"""


def make_environment(folder: Path, share: float, *, awake: bool = False) -> Path:
    """Writes the program that stands for the slow environment's Python."""
    (folder / "sitecustomize.py").write_text(SLEEP.format(share=share, wait="loop" if awake else "time.sleep"))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}:{ROOT}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def main() -> int:
    """What bench ends with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--share", type=float, default=0.05, help="of each step's time that is slept after it")
    parser.add_argument("--awake", action="store_true", help="wait in a loop, which costs the share and no more")
    known, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        python = make_environment(Path(folder), known.share, awake=known.awake)
        command = [sys.executable, "-m", "difftool", "bench", known.recipe, "--arm", f"slow=@{python}", "--gate", *rest]
        code = subprocess.run(command, cwd=Path.cwd()).returncode
    print(f"a wait of {100 * known.share:g} % in every step: exit code {code}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

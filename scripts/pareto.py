"""Which caches and precisions are worth their quality: a race of them all on a built-in model, and which others beat.

    python scripts/pareto.py builtin:shapes-image
    python scripts/pareto.py builtin:shapes-video --prompts 4 --repeats 6 --only bf16,dbcache-0.24

Prints a markdown table. `difftool bench` does the work: recipes take turns, each one's outputs are compared with those
of the recipe without any of it, and the rules of the model's world say which show their captions. TeaCache is fitted to
the model first, by `difftool calibrate` on the same items. Captions come from combinations that training never saw.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from difftool.builtin import shapes, shapes_video
from difftool.report.perf import PerfDump, Quality, read_perf

POOLS = {"builtin:shapes-image": shapes.scenes, "builtin:shapes-video": shapes_video.motions}
STAGE = "denoising"  # what all of it is about
TEACACHE = "teacache"  # whose lines are found first


def cached(**settings: Any) -> Mapping[str, Any]:
    return {"cache": {"backend": "dbcache", "min_hit_rate": 0, **settings}}


def masked(preset: str) -> Mapping[str, Any]:
    return cached(scm={"preset": preset, "policy": "static"})


def quantized(**options: Any) -> Mapping[str, Any]:
    return {"stages": {STAGE: {"quantization": options}}}


RECIPES: Mapping[str, Mapping[str, Any]] = {
    "bf16": {"stages": {STAGE: {"precision": "bf16"}}},
    "int8": quantized(name="int8"),
    "int8-weights": quantized(name="int8", activations="none"),
    "fp8": quantized(name="fp8"),
    "dbcache-0.12": cached(residual_diff_threshold=0.12),
    "dbcache-0.24": cached(residual_diff_threshold=0.24),
    "dbcache-0.4": cached(residual_diff_threshold=0.4),
    "taylorseer": cached(residual_diff_threshold=0.24, taylorseer={"enabled": True}),
    **{f"scm-{preset}": masked(preset) for preset in ("slow", "medium", "fast", "ultra")},
    TEACACHE: {},
}


@dataclass(frozen=True)
class Point:
    """One recipe: how many times as fast as the plain one, with the interval of that, and what its outputs are worth:
    the PSNR of each in dB beside the plain one's, infinite where they are equal.
    """

    name: str
    speed: float
    interval: tuple[float, float]
    psnr: Sequence[float]
    right: str = ""
    ideal: float | None = None

    @property
    def worst(self) -> float:
        return min(self.psnr)


def beats(one: Point, other: Point) -> bool:
    """As fast at least, as good at least in its worst output, and better in one of them."""
    return (
        one.speed >= other.speed and one.worst >= other.worst and (one.speed, one.worst) != (other.speed, other.worst)
    )


def on_front(point: Point, points: Sequence[Point]) -> str:
    """`yes` where no other beats it; `no` where one does that is surely as fast, by the intervals; with the fastest."""
    better = sorted((other for other in points if beats(other, point)), key=lambda other: -other.speed)
    if not better:
        return "yes"
    surely = [other.name for other in better if other.interval[0] >= point.interval[1]]
    return f"no: {surely[0]}" if surely else f"perhaps not: {better[0].name}"


def table(points: Sequence[Point]) -> str:
    """The fastest first."""
    lines = [
        "| recipe | speed (95 %) | by FLOPs | PSNR, worst and median | right | on the front |",
        "|---|---|--:|--:|---|---|",
    ]
    for point in sorted(points, key=lambda point: -point.speed):
        low, high = point.interval
        speed = f"{point.speed:.2f}" + (f" ({low:.2f} to {high:.2f})" if low < high else "")
        worth = " and ".join(f"{value:.1f}" for value in (point.worst, statistics.median(point.psnr)))
        worth = "equal" if math.isinf(point.worst) else worth
        ideal = "" if point.ideal is None else f"{point.ideal:.2f}"
        lines.append(f"| {point.name} | {speed} | {ideal} | {worth} | {point.right} | {on_front(point, points)} |")
    return "\n".join(lines) + "\n"


def read_point(dump: PerfDump, metrics: Sequence[Mapping[str, Any]] | None) -> Point:
    """Of an arm's dump and its comparison with the plain recipe; None: it is that one."""
    quality, ideal = dump.quality, dump.effective.get("cache", {}).get("flop_ideal_speedup")
    assert quality is not None and quality.accuracy is not None, dump.run
    right = f"{quality.accuracy.right} of {quality.accuracy.count}"
    if metrics is None:
        return Point("plain", 1.0, (1.0, 1.0), [math.inf], right)
    (found,) = [metric for metric in metrics if metric["name"] == STAGE]
    low, high = found["ci95"] or (0.0, math.inf)
    interval = (1 / high, 1 / low if low else math.inf)
    return Point(str(dump.tag), 1 / found["ratio"], interval, decibels(quality), right, ideal)


def decibels(quality: Quality) -> list[float]:
    """The PSNR of every output."""
    assert all(output.max_abs is not None for output in quality.per_output), "outputs without a reference"
    return [math.inf if output.psnr is None else output.psnr for output in quality.per_output]


def difftool(*arguments: object, folder: Path) -> None:
    command = [sys.executable, "-m", "difftool", *map(str, arguments)]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def write_recipes(folder: Path, args: argparse.Namespace, names: Sequence[str]) -> None:
    """`plain.yaml`, and a recipe for each name that is laid over it."""
    pool = POOLS[args.model](held_out=True)
    chosen = [pool[i * len(pool) // args.prompts] for i in range(args.prompts)]
    steps = {"num_inference_steps": args.steps} if args.steps else {}
    plain = {
        "model": args.model,
        "sampling": {"prompts": [{"prompt": s.caption(), "seed": i} for i, s in enumerate(chosen, start=1)], **steps},
        "launch": {"device": args.device},
        "quality": {"reference": {"without": ["cache", "stages"]}},
        "output": {"dir": str(folder / "made")},
    }
    (folder / "plain.yaml").write_text(yaml.safe_dump(plain))
    for name in names:
        lines = RECIPES[name] if name != TEACACHE else fitted(folder)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"extends": "./plain.yaml", **lines}))


def fitted(folder: Path) -> Mapping[str, Any]:
    """TeaCache's lines for this model."""
    difftool("calibrate", "plain.yaml", "-o", "fitted.yaml", folder=folder)
    return {"cache": yaml.safe_load((folder / "fitted.yaml").read_text())["cache"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=POOLS)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-time", default="60m")
    parser.add_argument("--only", default=",".join(RECIPES), help="some of the recipes, by name")
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := set(names) - set(RECIPES):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(RECIPES)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_recipes(folder, args, names)
        arms = [word for name in names for word in ("--arm", f"{name}={name}.yaml")]
        limits = ("--repeats", args.repeats, "--max-time", args.max_time)
        difftool("bench", "plain.yaml", *arms, *limits, "-o", "report.json", folder=folder)
        report = json.loads((folder / "report.json").read_text())
        points = [read_point(read_perf(folder / report["base"]["path"]), None)]
        for each in report["comparisons"]:
            points.append(read_point(read_perf(folder / each["new"]["path"]), each["metrics"]))
    print(table(points), end="")


if __name__ == "__main__":
    main()

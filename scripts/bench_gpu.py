"""Denoising steps of published models, true in shape and random in weights: difftool beside stock diffusers, one GPU.

    python scripts/bench_gpu.py                                      # four models, under ten minutes, on 80 GB
    python scripts/bench_gpu.py --models flux1-dev --arms diffusers,difftool-cudnn --repeats 16
    python scripts/bench_gpu.py --tiny --device cpu --out /tmp/tiny  # the same code in seconds, for its own sake

Nothing is fetched: a denoiser is made of its published config, its weights are drawn on the device, and encoded texts
are drawn in their true shape. Arms share the weights and take turns (A B B A); what compiles is warmed up first and
timed apart. Every arm leaves a perf dump with its raw samples, which `difftool compare-perf` reads.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bench_gpu_arms import ARMS, DEFAULT, Bench, planned, precisions, step_flops
from bench_gpu_models import MODELS, Model, random_modules, random_text, write_configs
from bench_gpu_race import Budget, Race
from bench_gpu_report import faults, report, results, table

from difftool.errors import PlanError
from difftool.facts import TORCH_DTYPES
from difftool.platforms.base import Platform, current
from difftool.profiling.environment import describe_environment
from difftool.profiling.telemetry import Watch, watching
from difftool.report.perf import write_perf

NO_DEVICE = "true shapes are measured on a CUDA device, and there is none here"
WAY_OUT = "run it on a machine with a GPU of 80 GB, or try the code with --tiny --device cpu"
SECONDS = {"s": 1.0, "m": 60.0}
CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch's own, read whenever it compiles


def main(argv: list[str] | None = None) -> int:
    """0, 1 where arms did not compute the same, or 2 where nothing can be measured."""
    arguments = parsed(argv)
    platform = found_platform(arguments.device)
    if platform is None or platform.name == "cpu" and not arguments.tiny:
        print(f"error: {NO_DEVICE}\n{WAY_OUT}", file=sys.stderr)
        return 2
    budget = Budget(arguments.max_time)
    if platform.name == "cpu":
        torch.set_num_threads(1)  # tiny operators are too small to be split
    with watching(platform) as watch, empty_compile_cache():
        return measure(arguments, budget, platform, watch)


def found_platform(device: str) -> Platform | None:
    """The device, where it is here."""
    try:
        return current(device)
    except PlanError:
        return None


@contextmanager
def empty_compile_cache() -> Iterator[None]:
    """What was compiled in earlier calls is not found again: a first run is a first run."""
    before = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE] = folder
        try:
            yield
        finally:
            os.environ.pop(CACHE)
            os.environ |= {} if before is None else {CACHE: before}


def measure(arguments: argparse.Namespace, budget: Budget, platform: Platform, watch: Watch) -> int:
    """Every model in its turn, each with an equal part of the time that is left."""
    environment, wrong = describe_environment(platform), []
    sections, unreached, names = list[str](), list[str](), list(arguments.models)
    for position, name in enumerate(names):
        if budget.left() <= 0:
            unreached = names[position:]
            break
        try:
            found = bench_model(name, arguments, budget.share(len(names) - position), platform, watch)
            wrong += faults(found)
            sections.append(table(found))
        except torch.OutOfMemoryError as error:
            sections.append(f"## {name}\n\nNot measured: {str(error).partition('. ')[0]}.\n")
        write_page(arguments, sections, environment, names[position + 1 :])
        torch._dynamo.reset()  # graphs hold on to the weights that they were made with
        platform.free_memory()
    page = write_page(arguments, sections, environment, unreached)
    print(page)
    print("\n".join(f"error: {fault}" for fault in wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


def write_page(
    arguments: argparse.Namespace, sections: list[str], environment: dict[str, Any], unreached: list[str]
) -> str:
    """What is known so far, so that a call that is cut short leaves it."""
    device, versions = str(environment["device"]["name"]), environment["packages"]
    page = report(sections, device=device, versions=versions, unreached=unreached)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "report.md").write_text(page)
    return page


def bench_model(
    name: str, arguments: argparse.Namespace, budget: Budget, platform: Platform, watch: Watch
) -> dict[str, Any]:
    """Builds a model, races its arms, writes their dumps and its JSON."""
    model = MODELS[name]
    say(f"{name}: {budget.left():.0f} s")
    with tempfile.TemporaryDirectory() as folder:
        bench = build(name, model, arguments, platform, Path(folder, name))
        plan = bench.plan(arguments.arms[0])
        race = Race(bench, budget, watch, step_flops(bench, plan), say)
        raced = race.run(arguments.arms, arguments.repeats)
    dumps, out = raced.dumps(), arguments.out / name
    about = {
        "tiny": arguments.tiny,
        "precision": bench.precision,
        "text_tokens": bench.text.tokens,
        "request": {key: value for key, value in plan.items[0].sampling.items() if value is not None},
        "env": describe_environment(platform),
    }
    found = results(name, raced, dumps, about)
    out.mkdir(parents=True, exist_ok=True)
    for arm, dump in dumps.items():
        write_perf(out / f"{arm}.json", dump)
    (arguments.out / f"{name}.json").write_text(json.dumps(found, indent=2, default=str) + "\n")
    return found


def build(name: str, model: Model, arguments: argparse.Namespace, platform: Platform, folder: Path) -> Bench:
    """The model on the device, and what its arms share."""
    write_configs(model, folder, tiny=arguments.tiny)
    sampling = {
        "num_inference_steps": arguments.steps or model.steps,
        **(model.tiny_sampling if arguments.tiny else {}),
    }
    label = f"{name}-random{'-tiny' if arguments.tiny else ''}"

    def plan(arm: str):
        given = {"device": arguments.device, "repeats": arguments.repeats, "label": label}
        return planned(model.hub_id, arm, sampling, **given)

    named = precisions(plan("difftool"), platform, folder)
    dtypes = {part: getattr(torch, TORCH_DTYPES[precision]) for part, precision in named.items()}
    modules = random_modules(model, folder, dtypes, platform.device)
    config = modules["transformer"].config
    text = random_text(model, config, platform.device, dtypes["transformer"], tiny=arguments.tiny)
    return Bench(plan, named["transformer"], folder, platform, modules, text)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def seconds(text: str) -> float:
    """`9m` or `540s`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([sm])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text}: write it as 9m or 540s")
    return float(found[1]) * SECONDS[found[2]]


def several(known: Any) -> Any:
    """A type of argument: names of these, between commas."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        if stray := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{stray[0]}: not one of {', '.join(known)}")
        return names

    return read


def at_least_one(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return count


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=several(MODELS), default=list(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--arms", type=several(ARMS), default=DEFAULT, help=f"of {', '.join(ARMS)}")
    parser.add_argument("--steps", type=at_least_one, help="denoising steps of a run; 4, of a video 2, unless given")
    parser.add_argument("--repeats", type=at_least_one, default=8, help="measured runs of every arm")
    parser.add_argument("--max-time", type=seconds, default=seconds("9m"), help="no run begins that would end later")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on any device")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

"""What bench_gpu.py found of a model, as data and as a table: every number from the raw samples of the dumps."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench_gpu_arms import ARMS
from bench_gpu_race import LIMIT, Raced

from difftool.report.perf import PerfDump
from difftool.report.statistics import FEWEST_RUNS, ratio_interval
from difftool.report.summary import run_readings, summarise

TERA = 1e12


def results(name: str, raced: Raced, dumps: Mapping[str, PerfDump], about: Mapping[str, Any]) -> dict[str, Any]:
    """Of one model. Times are milliseconds; a ratio is how many times faster than a stock arm, with its 95 % interval.

    A reading is the median step of one run, as in `difftool compare-perf`.
    """
    readings = {arm: run_readings(dump.samples)["step"] for arm, dump in dumps.items()}
    return {
        "schema": "difftool.bench-gpu/v1",
        "model": name,
        **about,
        "flops_per_step": raced.flops,
        "order": list(raced.order),
        "arms": {
            runner.arm.name: {
                "step_ms": summarise(readings[runner.arm.name]).model_dump(),
                "readings_ms": readings[runner.arm.name],
                **rates(raced.flops, readings[runner.arm.name], dumps[runner.arm.name]),
                "first_run_ms": runner.cold_ms,
                "compile_ms": runner.recording.compile_ms,
                "difference": runner.difference,
                "effective": runner.arm.effective,
                "dump": f"{name}/{runner.arm.name}.json",
            }
            for runner in raced.runners
            if runner.arm.name in dumps
        },
        "speedup": speedups(readings),
        "left_out": dict(raced.left_out),
    }


def rates(flops: float | None, readings: Sequence[float], dump: PerfDump) -> dict[str, float | None]:
    """FLOP/s of the median step, and the part of the device's peak that it is."""
    peak = dump.cost.peak_flops if dump.cost is not None else None
    rate = None if flops is None else flops / statistics.median(readings) * 1e3
    return {"flops_per_s": rate, "peak_flops": peak, "mfu": rate / peak if rate and peak else None}


def speedups(readings: Mapping[str, Sequence[float]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Of every arm of difftool over every stock one; fewer than three runs have no interval."""
    own, stock = ([arm for arm in readings if ARMS[arm].own is kind] for kind in (True, False))
    return {arm: {other: speedup(readings[other], readings[arm]) for other in stock} for arm in own}


def speedup(stock: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """How many times faster."""
    few = min(len(stock), len(ours)) < FEWEST_RUNS
    interval = None if few else ratio_interval(ours, stock)
    return {"ratio": statistics.median(stock) / statistics.median(ours), "ci95": interval}


def faults(found: Mapping[str, Any]) -> list[str]:
    """Arms that did not compute what the first one did: their times mean nothing."""
    return [
        f"{found['model']}: the latents of {arm} are {each['difference']:.2g} of their norm from the first arm's"
        for arm, each in found["arms"].items()
        if not each["difference"] <= LIMIT
    ]


def table(found: Mapping[str, Any]) -> str:
    """One model's section in markdown."""
    stock = [arm for arm in found["arms"] if not ARMS[arm].own]
    heads = ["arm", "ms a step (95 %)", "TFLOP/s", "MFU", *(f"over {arm}" for arm in stock), "first run", "off by"]
    rows = [[arm, *_row(each, found["speedup"].get(arm, {}), stock)] for arm, each in found["arms"].items()]
    lines = [" | ".join(cells) for cells in (heads, ["---", *["--:"] * (len(heads) - 1)], *rows)]
    left_out = [f"- `{arm}` was left out: {why}" for arm, why in found["left_out"].items()]
    body = [f"| {line} |" for line in lines] if rows else ["Nothing was measured."]
    return "\n".join(
        [f"## {found['model']}", "", _request(found), "", *body, *([""] if left_out else []), *left_out, ""]
    )


def _request(found: Mapping[str, Any]) -> str:
    request, flops = found["request"], found["flops_per_step"]
    size = "x".join(str(request[key]) for key in ("width", "height", "num_frames") if request.get(key))
    cost = "" if flops is None else f", {flops / TERA:.3g} TFLOP a step"
    tiny = "; tiny shapes, which say nothing of the model" if found["tiny"] else ""
    return f"{size}, {found['text_tokens']} text tokens, {found['precision']}{cost}; random weights{tiny}."


def _row(each: Mapping[str, Any], ratios: Mapping[str, Any], stock: Sequence[str]) -> list[str]:
    rate, mfu = each["flops_per_s"], each["mfu"]
    times = [_times(ratios[arm]) if arm in ratios else "" for arm in stock]
    return [
        _interval(each["step_ms"]),
        "" if rate is None else f"{rate / TERA:.3g}",
        "" if mfu is None else f"{100 * mfu:.0f} %",
        *times,
        _first(each["first_run_ms"] / 1e3, each["compile_ms"] / 1e3),
        f"{each['difference']:.1g}",
    ]


def _first(seconds: float, compiling: float) -> str:
    return f"{seconds:.1f} s" + (f", {compiling:.1f} s to compile" if compiling else "")


def _interval(summary: Mapping[str, Any]) -> str:
    interval = summary["ci95"]
    return f"{summary['median']:.4g}" + ("" if interval is None else f" ({interval[0]:.4g} to {interval[1]:.4g})")


def _times(speedup: Mapping[str, Any]) -> str:
    interval = speedup["ci95"]
    return f"{speedup['ratio']:.2f}x" + ("" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})")


def report(sections: Sequence[str], *, device: str, versions: Mapping[str, str], unreached: Sequence[str]) -> str:
    """The whole page."""
    known = ", ".join(f"{name} {version}" for name, version in versions.items())
    head = ["# Denoising steps beside stock diffusers", "", f"{device}; {known}; made by `scripts/bench_gpu.py`.", ""]
    tail = [f"Not reached in the time: {', '.join(unreached)}.", ""] if unreached else []
    return "\n".join([*head, *sections, *tail])

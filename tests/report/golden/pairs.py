"""Pairs of dumps whose comparison is known: every way to be misled by two numbers, each worked out by hand.

A run takes 940 ms of denoising and 60 ms of decoding, and 300 MiB. Four metrics count: total, the two stages and
peak_memory. So Holm multiplies the least p by 4. Where every new run is slower than every base run, n against m, one
of all C(n + m, m) ways to deal the ranks is as extreme: p is 4 / C(n + m, m).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from report.dumps import SAMPLE, dump

EIGHT = (-4, -3, -2, -1, 1, 2, 3, 4)  # ms around the median
FIVE = (-2, -1, 0, 1, 2)
THREE = (-1, 0, 1)
RECIPE = {
    "model": {"path": "builtin:shapes-image"},
    "sampling": {"prompt": "a red circle", "num_inference_steps": 50},
    "quality": {"tier": "none"},
}
ENV = {"device": {"kind": "cuda", "name": "NVIDIA H100"}, "fingerprint": {"hardware": "h", "software": "s"}}
Content = dict[str, Any] | str


def sample(repeat: int, denoising: float, **changes: Any) -> dict[str, Any]:
    steps = [{"step": i, "duration_ms": denoising / 10, "kind": "compute"} for i in range(10)]
    return {
        **SAMPLE,
        "repeat": repeat,
        "total_ms": denoising + 60.0,
        "stages_ms": {"denoising": denoising, "decoding": 60.0},
        "denoise_steps_ms": steps,
        **changes,
    }


def made(samples: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    recipe = {"name": "x", "sha256": "r", "workload_sha256": "w", "resolved": RECIPE, "provenance": {}}
    stages = {"denoising": 940.0, "decoding": 60.0}
    content = {"samples": samples, "stages_ms": stages, "recipe": recipe, "env": ENV, **changes}
    return json.loads(dump(**content).model_dump_json(by_alias=True))


def runs(
    denoising: float, around: Sequence[float] = EIGHT, *, peak_memory_mb: float = 300.0, **changes: Any
) -> Content:
    times = [denoising + offset for offset in around]
    return made([sample(i, ms, peak_memory_mb=peak_memory_mb) for i, ms in enumerate(times)], **changes)


def with_step_7_at(ms: float) -> Content:
    """Ten steps of 94 ms, but for one, in every run."""
    samples = []
    for i, offset in enumerate(EIGHT):
        steps = [{"step": j, "duration_ms": ms if j == 7 else 94.0, "kind": "compute"} for j in range(10)]
        samples.append(sample(i, 9 * 94.0 + ms + offset, denoise_steps_ms=steps))
    return made(samples)


def other(workload: str, **sections: Any) -> dict[str, Any]:
    resolved = {**RECIPE, **sections}
    recipe = {"name": "x", "sha256": "q", "workload_sha256": workload, "resolved": resolved, "provenance": {}}
    return {"recipe": recipe}


def worth(tier: str, *, passed: bool, **output: Any) -> dict[str, Any]:
    block = {"tier": tier, "reference": "without cache", "per_output": [{"item": 0, **output}], "passed": passed}
    return {"quality": {**block, "reasons": [] if passed else ["output 0 of item 0 is not good enough"]}}


def items(count: int, denoising: float) -> Content:
    """One run of many items."""
    return made([sample(0, denoising, item=i, id=str(i)) for i in range(count)])


def as_text(content: Content) -> str:
    return content if isinstance(content, str) else json.dumps(content)


@dataclass(frozen=True)
class Golden:
    """Two dumps, and what has to be said of them. `effect` in per cent and `p` are those of `metric`."""

    base: Content
    new: Content
    verdict: str | None
    code: int
    gate: int
    effect: float | None = None
    p: float | None = None
    metric: str = "total"
    said: str = ""
    flags: tuple[str, ...] = ()


BASE = runs(940)
BLACK = {"tripwires": ["black"]}
HALVED = other("v", sampling={**RECIPE["sampling"], "num_inference_steps": 25})
THROTTLED = [{"code": "W-THROTTLE", "message": "the clock was held down in 8 of 8 samples"}]
# all but one new run are slower than all but one base run, which was disturbed: it is above 7 of the new ones. The ways
# with 0 to 7 such pairs out of order number 1, 1, 2, 3, 5, 7, 11, 15 (partitions), 45 in all: p is 4 · 45 / 12870
ALMOST = (runs(940, (-4, -3, -2, -1, 1, 2, 3, 500)), runs(990, (-4, -3, -2, -1, 1, 2, 3, 600)))
SPREAD = (-120, -80, -60, -40, 40, 60, 80, 120)

PAIRS: dict[str, Golden] = {
    "identical": Golden(BASE, BASE, "NO_CHANGE", 0, 0, 0.0, 1.0),
    # 3 against 3: 4 / C(6, 3) = 0.2; the least n with 4 / C(2n, n) < 0.01 is 6, with 4 / 924 = 0.0043
    "plus 3 % at n=3": Golden(
        *(runs(940, THREE), runs(970, THREE), "INCONCLUSIVE", 0, 12, 3.0),
        said="3 against 3 runs; 3 more repeats of each",
    ),
    "plus 3 % at n=5": Golden(
        *(runs(940, FIVE), runs(970, FIVE), "INCONCLUSIVE", 0, 12, 3.0),
        said="5 against 5 runs; 1 more repeat of each",
    ),
    "plus 3 % at n=8": Golden(BASE, runs(970), "REGRESSED", 10, 10, 3.0, 4 / 12870),
    "minus 10 % at n=8": Golden(BASE, runs(840), "IMPROVED", 0, 0, -10.0, 4 / 12870),
    "plus 1 %, below the floor": Golden(BASE, runs(950), "NO_CHANGE", 0, 0, 1.0, 4 / 12870),
    "plus 1 %, with a floor of 1 %": Golden(
        BASE, runs(950), "REGRESSED", 10, 10, 1.0, 4 / 12870, flags=("--threshold", "total=1%")
    ),
    # the medians are 1000 and (999 + 1002) / 2; by the means it would be 5 %
    "one spiked sample": Golden(BASE, runs(940, (-4, -3, -2, -1, 400, 2, 3, 4)), "NO_CHANGE", 0, 0, 0.05, 1.0),
    "chance could have done it": Golden(*ALMOST, "INCONCLUSIVE", 0, 12, 5.0, 4 * 45 / 12870, said="wide"),
    "too noisy to say": Golden(runs(940, SPREAD), runs(940, SPREAD), "INCONCLUSIVE", 0, 12, 0.0, 1.0, said="race both"),
    "8 against 5 runs": Golden(BASE, runs(1040, FIVE), "REGRESSED", 10, 10, 10.0, 4 / 1287),
    # 4 / C(12, 4) = 0.0081 is the first below 0.01
    "8 against 2 runs": Golden(
        BASE, runs(1040, (0, 1)), "INCONCLUSIVE", 0, 12, 10.05, said="8 against 2 runs; 2 more repeats of new"
    ),
    "25 against 50 steps": Golden(
        BASE, runs(470, **HALVED), "INCOMPARABLE", 12, 12, said="num_inference_steps: 50 -> 25"
    ),
    "another model": Golden(
        BASE, runs(940, **other("v", model={"path": "me/other"})), "INCOMPARABLE", 12, 12, said="model.path"
    ),
    "doubled memory": Golden(
        BASE, runs(940, peak_memory_mb=600.0), "REGRESSED", 10, 10, 100.0, 4 / 12870, metric="peak_memory"
    ),
    "one step spiked": Golden(
        with_step_7_at(94.0), with_step_7_at(194.0), "REGRESSED", 10, 10, 10.0, 4 / 12870, said="| 7 | 94.0 | 194.0 |"
    ),
    "faster but black": Golden(
        BASE, runs(740, **worth("none", passed=False, **BLACK)), "QUALITY_FAILED", 11, 11, -20.0, 4 / 12870
    ),
    "faster but black, and nobody said so": Golden(
        BASE, runs(740, **worth("none", passed=True, **BLACK)), "QUALITY_FAILED", 11, 11, -20.0, said="tripwire black"
    ),
    "faster but PSNR 20": Golden(
        *(BASE, runs(740, **worth("lossy", passed=False, psnr=20.0, ssim=0.9, max_abs=0.5))),
        *("QUALITY_FAILED", 11, 11, -20.0, 4 / 12870),
    ),
    "faster but PSNR 20, asked here": Golden(
        *(BASE, runs(740, **worth("none", passed=True, psnr=20.0, ssim=0.9, max_abs=0.5))),
        *("QUALITY_FAILED", 11, 11, -20.0),
        said="PSNR 20, and lossy asks for 22",
        flags=("--quality", "lossy"),
    ),
    "quality asked for and unknown": Golden(
        BASE, BASE, "INCONCLUSIVE", 0, 12, 0.0, said="says nothing of quality", flags=("--quality", "near")
    ),
    "slower and black: quality wins": Golden(
        BASE, runs(1040, **worth("none", passed=False, **BLACK)), "QUALITY_FAILED", 11, 11, 10.0
    ),
    "throttled": Golden(
        BASE,
        runs(1040, warnings=THROTTLED),
        "INCONCLUSIVE",
        0,
        12,
        10.0,
        4 / 12870,
        said="not believed, for W-THROTTLE of new",
    ),
    "many items are not many runs": Golden(
        items(8, 940.0), items(8, 1040.0), "INCONCLUSIVE", 0, 12, 10.0, said="1 against 1 run; 5 more repeats of each"
    ),
    "single runs": Golden(
        runs(940, (0,)), runs(940, (0,)), "INCONCLUSIVE", 0, 12, 0.0, said="to decide: difftool bench BASE.yaml"
    ),
    "single runs, 30 % slower": Golden(runs(940, (0,)), runs(1240, (0,)), "INCONCLUSIVE", 0, 12, 30.0),
    "empty": Golden(BASE, "", None, 2, 2, said="new.json is empty"),
    "truncated": Golden(BASE, as_text(BASE)[:1500], None, 2, 2, said="new.json is not JSON: it ends too early"),
    "NaN": Golden(
        BASE, as_text(BASE).replace("998.0", "NaN", 1), None, 2, 2, said="new.json is no valid perf dump: samples[2]"
    ),
}

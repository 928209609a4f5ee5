"""Quality on the command line: the reference is made first, and outputs that are not worth the tier end with 11."""

import json
from pathlib import Path

import pytest

from difftool.cli.quality import prepare_references, quality_lines
from difftool.errors import PlanError
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe
from difftool.report.perf import OutputQuality
from difftool.report.quality import build_quality

RECIPE = """model: builtin:shapes-image
stages: {decoding: {precision: bf16}}
sampling: {prompt: [a red circle, a blue circle], seed: 7}
quality: {tier: near, reference: {without: [stages.decoding.precision]}}
"""
A_RUN = (
    "loads transformer 2.8M bf16 -> fp32 in 0.2 s\n"
    "loaded in 0.5 s\n"
    "[1/2] 0, seed 7: a red circle\n"
    "[1/2] denoising 40.0 ms\n"
    "[2/2] 1, seed 8: a blue circle\n"
    "[2/2] denoising 40.0 ms\n"
)


@pytest.fixture
def recipe(difftool) -> str:
    Path("r.yaml").write_text(RECIPE)
    return "r.yaml"


def references() -> list[str]:
    return sorted(path.name for path in Path("outputs/.difftool/references").glob("*/*.npz"))


def test_the_reference_is_made_first_and_only_once(difftool, worker, recipe):
    worker("succeed")
    answer = difftool("generate", recipe)
    assert (answer.code, answer.out) == (0, "outputs/0.png\noutputs/1.png\n")
    assert answer.err.startswith(
        "makes the reference first: the same recipe without stages.decoding.precision\n"
        f"{A_RUN}"
        "makes the outputs to compare with it\n"
        f"{A_RUN}"
        "stage          ms, median of 2\n"
    )
    assert references() == ["0.npz", "1.npz"]
    assert difftool("generate", recipe).err.startswith(f"{A_RUN}stage ")


def test_it_is_made_again_where_a_file_of_it_is_gone(difftool, worker, recipe):
    worker("succeed")
    difftool("generate", recipe, "-q")
    next(Path("outputs/.difftool/references").glob("*/1.npz")).unlink()
    assert difftool("generate", recipe, "-q").code == 0
    assert references() == ["0.npz", "1.npz"]


def test_programs_hear_of_the_run_they_asked_for_alone(difftool, worker, recipe):
    worker("succeed")
    events = [json.loads(line)["event"] for line in difftool("generate", recipe, "--json").out.splitlines()]
    assert (events.count("started"), events.count("finished"), events.count("output")) == (1, 1, 2)
    quiet = difftool("generate", recipe, "-q", "--set", "sampling.seed=9")
    assert (quiet.out, quiet.err) == ("outputs/0.png\noutputs/1.png\n", "")


def test_what_fails_a_reference_fails_the_run(difftool, worker, recipe):
    worker("weights")
    answer = difftool("generate", recipe, "-q")
    assert (answer.code, references()) == (4, [])


def test_outputs_below_their_tier_are_kept_and_told_with_11(difftool, worker, recipe):
    worker("black")
    answer = difftool("generate", recipe, "--perf-dump-path", "perf.json")
    assert (answer.code, answer.out) == (11, "outputs/0.png\noutputs/1.png\n")
    assert answer.err.endswith(
        "total                     50.0\n"
        "quality: near not reached against the same recipe without stages.decoding.precision, at worst PSNR 38.2 dB, "
        "SSIM 0.981\n"
        "perf dump: perf.json\n"
        "error: quality: output 0 of item 1 fails the tripwire black; one; more; and 1 more\n"
        "hint: the outputs are kept; their numbers are in perf.json\n"
    )
    assert json.loads(Path("perf.json").read_text())["quality"]["passed"] is False


def test_a_black_picture_ends_with_11_though_no_tier_was_asked_for(difftool, worker):
    worker("black")
    answer = difftool("generate", "builtin:shapes-image", "-p", "a red circle", "-p", "a blue circle", "--json")
    event = json.loads(answer.out.splitlines()[-1])
    assert (answer.code, event["event"], event["kind"], event["exit_code"]) == (11, "error", "QualityFailed", 11)


def test_outputs_of_an_earlier_start_are_no_part_of_a_tier(difftool, worker, recipe):
    worker("weights")
    difftool("generate", recipe, "-q", "--set", "quality=null")
    worker("succeed")
    answer = difftool("generate", recipe, "--resume")
    assert answer.code == 2
    assert answer.err.startswith(
        "error: --resume: quality.tier=near asks of every output, also of those made before\n"
        "hint: resume with --set quality.tier=none, or start anew without --resume\n"
    )
    assert difftool("generate", recipe, "--resume", "-q", "--set", "quality.tier=none").code == 0


def test_ranks_of_another_launcher_make_no_second_run(recipe):
    plan = make_plan(load_recipe(recipe), run=RunOptions())
    with pytest.raises(PlanError, match="holds no references yet, and these ranks make one run only"):
        prepare_references(plan, alone=False, mode="quiet", verbose=False)


@pytest.mark.parametrize(
    ("values", "tier", "line"),
    [
        ({"max_abs": 0.0, "ssim": 1.0}, "exact", "exact reached against the files in refs, every pixel equal"),
        ({"max_abs": 0.1, "psnr": 31.25, "ssim": 0.9512}, "none", "against the files in refs, at worst PSNR 31.2 dB, "),
        ({"max_abs": 0.1, "psnr": 47.0}, "near", "near cannot be said against the files in refs, at worst PSNR 47.0 "),
        ({}, "near", "near cannot be said against the files in refs"),
    ],
)
def test_a_line_says_how_the_comparison_went(values, tier, line):
    (said,) = quality_lines(build_quality([OutputQuality(item=0, **values)], tier, "the files in refs"))
    assert said.startswith(f"quality: {line}")


def test_a_built_in_model_is_judged_by_its_prompts_too():
    outputs = [OutputQuality(item=item, max_abs=0.0, right=item > 1) for item in range(10)]
    assert quality_lines(build_quality(outputs, "exact", "refs"))[1] == (
        "the outputs show what their prompts say: 8 of 10 (49 to 94 %)"
    )


def test_without_a_reference_there_is_nothing_to_tell():
    assert quality_lines(build_quality([OutputQuality(item=0, right=True)], "none", None)) == []
    assert quality_lines(None) == []

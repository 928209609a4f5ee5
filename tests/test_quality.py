"""Outputs of real runs beside their references, from the command line to the dump."""

import pytest
from profiling.tiny_judges import write_clip, write_lpips
from tiny import difftool

from difftool.report.perf import read_perf

RECIPE = """model: builtin:shapes-image
stages: {decoding: {precision: bf16}}
sampling: {prompt: [a red circle, a house, a blue star], seed: 7, num_inference_steps: 6}
quality: {tier: lossless, reference: {without: [stages.decoding.precision]}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that made its reference first, with r.yaml and perf.json."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "r.yaml").write_text(RECIPE)
    done = difftool("generate", "r.yaml", "-q", "--perf-dump-path", "perf.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    return folder


@pytest.mark.slow
def test_a_decode_in_bf16_is_lossless_beside_one_in_fp32(run):
    quality = read_perf(run / "perf.json").quality
    assert (quality.tier, quality.passed, quality.reasons) == ("lossless", True, [])
    assert quality.reference == "the same recipe without stages.decoding.precision"
    assert [output.item for output in quality.per_output] == [0, 1, 2]
    for output in quality.per_output:
        assert 45 < output.psnr < 80 and 0.99 < output.ssim < 1 and 0 < output.max_abs < 0.1
        assert (output.tier, output.tripwires) == ("lossless", [])


@pytest.mark.slow
def test_models_of_the_user_s_score_every_output(tmp_path):
    write_lpips(tmp_path / "lpips.safetensors")
    write_clip(tmp_path / "clip")
    metrics = ["--set", "quality.metrics={lpips: lpips.safetensors, clip: clip}", "--set", "quality.tier=none"]
    (tmp_path / "r.yaml").write_text(RECIPE)
    done = difftool("generate", "r.yaml", *metrics, "--perf-dump-path", "perf.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    outputs = read_perf(tmp_path / "perf.json").quality.per_output
    assert [0 < output.lpips < 0.1 and output.clip_image > 0.9 for output in outputs] == [True] * 3
    assert len({output.clip for output in outputs}) == 3
    lpips, clip = max(output.lpips for output in outputs), min(output.clip for output in outputs)
    assert f", LPIPS {lpips:.3f}, CLIP " in done.stderr
    assert f"the outputs and their prompts: CLIP {clip:.3f} at worst\n" in done.stderr


def test_pictures_of_captions_are_judged_by_the_rules_of_their_world(run):
    quality = read_perf(run / "perf.json").quality
    assert [output.right for output in quality.per_output] == [True, None, True]
    assert (quality.accuracy.right, quality.accuracy.count) == (2, 2)


@pytest.mark.slow
def test_two_ranks_judge_what_they_made_by_the_reference_that_is_there(run):
    without = "quality.reference.without=[stages.decoding.precision, parallel]"
    ranks = ["--dp-size", 2, "--set", without, "--set", "quality.tier=exact", "--perf-dump-path", "two.json"]
    done = difftool("generate", "r.yaml", "-q", *ranks, cwd=run)
    one, two = (read_perf(run / name).quality for name in ("perf.json", "two.json"))
    assert done.returncode == 11
    assert done.stderr.startswith(
        f"error: quality: output 0 of item 0 differs by up to {one.per_output[0].max_abs:.3g}"
    )
    assert len(list((run / "outputs/.difftool/references").iterdir())) == 1
    assert two.per_output == one.per_output
    assert (two.passed, two.accuracy) == (False, one.accuracy)

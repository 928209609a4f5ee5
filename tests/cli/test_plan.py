"""`difftool plan`: the layout of a run, from facts alone, also of one that cannot run yet."""

import json
from dataclasses import astuple

from tiny import ROOT

WAN = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"


def test_the_layout_of_a_model_is_solved_without_its_weights_or_a_prompt(difftool):
    answer = difftool("plan", WAN, "--num-gpus", "8")
    assert answer.err == ""
    assert f"model     {WAN} (Wan, t2v, WanPipeline)\n" in answer.out
    assert "ranks     8 = dp 1 x cfg 2 x ring 1 x ulysses 4 x tp 1\n" in answer.out
    assert "items\n  none; give a prompt with -p\n" in answer.out


COST = """mesh
  cfg 2        ranks 0,4  1,5  2,6  3,7
  ulysses 4    ranks 0-3  4-7
  hsdp 8       ranks 0-7

memory per rank, the denoiser in bf16
  rank 0       weights 17.73 GiB: transformer 3.34 GiB, transformer_2 3.34 GiB, text_encoder 10.58 GiB, vae 484.06 MiB
               activations of the denoiser about 2.17 GiB, an estimate
  ranks 1-7    weights 17.72 GiB: transformer 3.33 GiB, transformer_2 3.33 GiB, text_encoder 10.58 GiB, vae 484.06 MiB
               activations of the denoiser about 2.17 GiB, an estimate

communication of a denoising step, sent by a rank (75600 image, 512 text tokens)
  ranks 0-7    ulysses   all_to_all     80 calls   23,224.320 MB
               ulysses   all_gather      1 calls    1,161.216 MB
               hsdp      all_gather     41 calls   25,086.289 MB
               cfg       all_gather      1 calls        9.677 MB
  all ranks    15,834,080.497 MB for all steps of an item

predicted scaling, assuming 400 TFLOP/s a card
  NVLink       4,077.148 ms computing, 75.031 ms waiting a step: 7.86 times one card (98 %)
  PCIe         4,077.148 ms computing, 493.234 ms waiting a step: 7.14 times one card (89 %)
"""


def test_the_cost_of_a_layout_is_told_without_a_device_or_weights(difftool):
    recipe = str(ROOT / "recipes" / "wan22-t2v-a14b-8xh100.yaml")
    answer = difftool("plan", recipe)
    assert (answer.code, answer.err) == (0, "")
    assert f"\n\n{COST}\nitems\n" in answer.out
    found = json.loads(difftool("plan", recipe, "--json").out)["prediction"]
    assert found["ranks"][5]["place"] == {"dp": 0, "cfg": 1, "ring": 0, "ulysses": 1, "tp": 0}
    assert found["ranks"][5]["step"][0] == {
        "line": "ulysses",
        "collective": "all_to_all",
        "calls": 80,
        "bytes": 23_224_320_000,
    }


def test_a_quiet_plan_tells_by_its_exit_code_and_only_what_is_wrong(difftool):
    asked = ("plan", "builtin:shapes-image", "-p", "x", "--quiet")
    assert astuple(difftool(*asked)) == (0, "", "")
    refused = "--set serve.port=8000: error: serve.port=8000: not available yet\n"
    assert astuple(difftool(*asked, "--set", "serve.port=8000")) == (2, "", refused)
    for other in ("--json", "--resolved"):
        answer = difftool(*asked, other)
        assert answer.code == 2 and answer.err.startswith(f"error: --quiet and {other} exclude each other\n")


def test_what_cannot_run_yet_is_said_after_the_plan_with_the_exit_code_of_a_run(difftool):
    arguments = ("builtin:shapes-image", "-p", "x", "--set", "serve.port=8000")
    answer = difftool("plan", *arguments)
    assert answer.code == 2 and answer.err == ""
    assert answer.out.endswith(
        "\n\nrefused: this plan cannot run\n  --set serve.port=8000: error: serve.port=8000: not available yet\n"
    )
    assert difftool("generate", *arguments, "--dry-run") == answer
    assert json.loads(difftool("plan", *arguments, "--json").out)["refused"] == [
        "--set serve.port=8000: error: serve.port=8000: not available yet"
    ]
    assert difftool("plan", *arguments, "--resolved").code == 2
    assert difftool("generate", *arguments).code == 2
    flux = ("black-forest-labs/FLUX.1-dev", "-p", "x", "--memory-budget", "1GiB")
    assert [difftool(command, *flux).code for command in ("plan", "generate")] == [3, 3]


def test_a_plan_that_can_run_ends_with_0(difftool):
    answer = difftool("plan", "builtin:shapes-image", "-p", "x", "--dp-size", "2", "--num-gpus", "2")
    assert (answer.code, "refused" in answer.out) == (0, False)


def test_a_plan_of_a_pipeline_that_diffusers_runs_says_so(difftool):
    answer = difftool("plan", "AIDC-AI/Ovis-Image-7B", "-p", "x")
    assert answer.code == 0 and "(diffusers, t2i, OvisImagePipeline)" in answer.out


def test_a_recipe_that_is_wrong_is_no_plan(difftool):
    answer = difftool("plan", WAN, "-p", "x", "--num-frames", "10")
    assert (answer.code, answer.out) == (2, "")
    assert "sampling.num_frames=10 is not 4k + 1; nearest: 9, 13" in answer.err

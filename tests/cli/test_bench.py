"""`difftool bench` as it is typed, with workers whose times were recorded."""

import functools
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from difftool.cli import contest
from difftool.launch.arm import plan_arm
from difftool.report.measured import read_measured
from difftool.report.perf import read_perf

TESTS = Path(__file__).parents[1]
RACER = TESTS / "launch" / "standin_racer.py"
AROUND = (900.0, 996.0, 997.0, 998.0, 999.0, 1001.0, 1002.0, 1003.0, 1004.0)  # the warm-up, then eight
SHAPES = ("builtin:shapes-image", "-p", "a red circle")


@pytest.fixture
def bench(difftool, monkeypatch, tmp_path):
    """Runs `difftool bench ARGUMENTS…` where the arms of these names take so long."""

    def run(*arguments, **times):
        (tmp_path / "times.json").write_text(json.dumps(times))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
        command = (sys.executable, str(RACER), str(tmp_path / "times.json"))
        monkeypatch.setattr(contest, "LocalArm", functools.partial(ARM, worker=command))
        return difftool("bench", *map(str, arguments))

    ARM = contest.LocalArm
    return run


def write_recipe(folder, file, **sections):
    (folder / file).write_text(json.dumps({"model": "builtin:shapes-image", **sections}))


def slower(share):
    """The same, with so much more in denoising."""
    return [60.0 + (1 + share) * (ms - 60.0) for ms in AROUND]


def test_a_sleep_of_five_per_cent_in_denoising_has_regressed_under_the_gate(bench, tmp_path):
    write_recipe(tmp_path, "slow.yaml")
    arguments = (*SHAPES, "--arm", "slow=slow.yaml", "--gate", "-o", "r.json", "-o", "r.xml")
    answer = bench(*arguments, base=AROUND, slow=slower(0.05))
    assert answer.code == 10
    assert answer.out.startswith("# REGRESSED: ")
    assert "- slow: **REGRESSED**, total 1000.0 ms -> 1047.0 ms, ratio 1.047" in answer.out
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["verdict"], report["comparisons"][0]["new"]["tag"]) == ("REGRESSED", "slow")
    metrics = {metric["name"]: metric["verdict"] for metric in report["comparisons"][0]["metrics"]}
    assert (metrics["denoising"], metrics["decoding"]) == ("REGRESSED", "NO_CHANGE")
    assert (tmp_path / "r.xml").exists()


def test_without_the_gate_a_verdict_is_news_and_no_failure(bench, tmp_path):
    write_recipe(tmp_path, "slow.yaml")
    answer = bench(*SHAPES, "--arm", "slow=slow.yaml", base=AROUND, slow=slower(0.05))
    assert (answer.code, answer.out.split(":")[0]) == (0, "# REGRESSED")


@pytest.mark.parametrize("renamed", ["same=builtin:shapes-image", "same=same.yaml"])
def test_the_same_under_another_name_has_not_changed(bench, tmp_path, renamed):
    write_recipe(tmp_path, "same.yaml", name="another name")
    answer = bench(*SHAPES, "--arm", renamed, "--gate", base=AROUND, same=[900.0, *reversed(AROUND[1:])])
    assert (answer.code, answer.out.split(":")[0]) == (0, "# NO_CHANGE")


def test_turns_are_told_and_every_arm_leaves_a_dump_of_its_own(bench, tmp_path):
    answer = bench(
        *SHAPES, "--arm", "same=builtin:shapes-image", "--repeats", 3, "--max-time", "1h", base=AROUND, same=AROUND
    )
    lines = answer.err.splitlines()
    assert lines[:4] == [
        "warm-up  base  900.0 ms",
        "warm-up  same  900.0 ms",
        "round 1  base  996.0 ms",
        "round 1  same  996.0 ms",
    ]
    assert lines[4:6] == ["round 2  same  997.0 ms", "round 2  base  997.0 ms"]
    (base, path), (same, _) = [line.removeprefix("perf dump of ").split(": ") for line in lines[-2:]]
    assert (base, same) == ("base", "same")
    dump = read_perf(tmp_path / path)
    # 3 runs of each cannot decide, and 6 can: it was undecided at 3, and looked again at 6
    assert (dump.measure.order, dump.measure.repeats, dump.measure.warmup_ms) == ("ABBA", 6, [900.0])
    assert [sample.total_ms for sample in dump.samples] == list(AROUND[1:7])
    assert read_measured(tmp_path / path).runs == 6 and (tmp_path / path).with_name("recipe.yaml").exists()


def test_an_undecided_race_says_so_and_fails_the_gate(bench):
    noisy = [1000.0, 700.0, 1300.0, 900.0, 1100.0, 800.0, 1200.0]
    answer = bench(*SHAPES, "--arm", "b=builtin:shapes-image", "--repeats", 4, "--gate", base=noisy, b=noisy[::-1])
    assert (answer.code, answer.out.split(":")[0]) == (12, "# INCONCLUSIVE")
    assert "round 12  base" in answer.err and "round 13" not in answer.err


def test_noise_within_a_race_is_cured_by_repeats_and_not_by_a_race(bench):
    noisy = [1000.0, *(1000.0 + offset for offset in (-70, 50, -60, 70, 60, -50, 5, -5, 55, -55, 2, -2))]
    answer = bench(*SHAPES, "--arm", "b=builtin:shapes-image", "--repeats", 4, base=noisy, b=[1000.0, *noisy[:0:-1]])
    assert re.search(r"noisy: .*: quieten the machine, or \d+ more repeats of each", answer.out)
    assert "difftool bench" not in answer.out  # which this is


def test_a_race_that_was_too_short_asks_for_repeats_and_not_for_a_race(bench):
    answer = bench(*SHAPES, "--arm", "b=builtin:shapes-image", "--repeats", 1, base=AROUND, b=AROUND)
    assert "too_few_samples: " in answer.out and "more repeats of each" in answer.out
    assert "difftool bench" not in answer.out


def test_every_arm_makes_the_seeds_that_the_base_drew(bench, tmp_path):
    prompts = [{"prompt": "a red circle", "seed": "random"}, {"prompt": "a blue star"}]
    for file in ("r.yaml", "copy.yaml"):
        write_recipe(tmp_path, file, sampling={"prompts": prompts})
    write_recipe(tmp_path, "other.yaml", sampling={"prompts": prompts[:1]})
    arms = ("--arm", "copy=copy.yaml", "--arm", "other=other.yaml", "--sweep", "launch.threads=3", "--vs", "diffusers")
    answer = bench("r.yaml", *arms, "--repeats", 2, "--max-time", "1s", others=AROUND)
    paths = dict(line.removeprefix("perf dump of ").split(": ") for line in answer.err.splitlines()[-5:])
    plans = {name: json.loads((tmp_path / path).with_name("plan.json").read_text()) for name, path in paths.items()}
    seeds = {name: [item["seed"] for item in plan["items"]] for name, plan in plans.items()}
    assert seeds["base"] == seeds["copy"] == seeds["launch.threads=3"] == seeds["diffusers"]
    assert seeds["base"][1] == 43 and len(seeds["other"]) == 1  # its prompts are its own


def test_a_sweep_races_every_point_against_the_recipe(bench, tmp_path):
    fast = [0.9 * ms for ms in AROUND]
    times = {"base": AROUND, "launch.threads=2": fast, "launch.threads=3": AROUND}
    write_recipe(tmp_path, "r.yaml", launch={"threads": 1}, sweep={"matrix": {"launch.threads": [1, 2, 3]}})
    answer = bench("r.yaml", "-p", "a red circle", "--gate", "-o", "r.json", **times)
    assert answer.code == 0
    found = [
        (one["new"]["tag"], one["verdict"]) for one in json.loads((tmp_path / "r.json").read_text())["comparisons"]
    ]
    assert found == [("launch.threads=2", "IMPROVED"), ("launch.threads=3", "NO_CHANGE")]  # 1 is the recipe itself
    typed = bench(*SHAPES, "-s", "launch.threads=1", "--sweep", "launch.threads=2,3", "-o", "t.json", **times)
    assert typed.out.split(":")[0] == "# IMPROVED"


def test_a_point_that_makes_something_else_is_incomparable_unless_that_is_allowed(bench):
    times = {"base": AROUND, "sampling.num_inference_steps=10": [ms / 2 for ms in AROUND]}
    arguments = (*SHAPES, "--sweep", "sampling.num_inference_steps=10", "--gate")
    assert bench(*arguments, **times).code == 12
    allowed = bench(*arguments, "--allow-mismatch", "workload", **times)
    assert (allowed.code, allowed.out.split(":")[0]) == (0, "# IMPROVED")


def test_one_recipe_alone_is_measured(bench):
    answer = bench(*SHAPES, "--quiet", base=AROUND)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == (
        "| metric | n | median | 95 % interval | min | max |\n"
        "|---|--:|--:|--:|--:|--:|\n"
        "| denoising (ms) | 8 | 940.0 | 936.0 to 944.0 | 936.0 | 944.0 |\n"
        "| decoding (ms) | 8 | 60.0 | 60.0 to 60.0 | 60.0 | 60.0 |\n"
        "| total (ms) | 8 | 1000.0 | 996.0 to 1004.0 | 996.0 | 1004.0 |\n"
        "| peak_memory (MiB) | 8 | 300.0 | 300.0 to 300.0 | 300.0 | 300.0 |\n"
        "| peak_host_memory (MiB) | 8 | 1.0 | 1.0 to 1.0 | 1.0 | 1.0 |\n"
    )


def test_json_is_every_event_with_its_arm_and_then_the_report(bench):
    answer = bench(*SHAPES, "--arm", "b=builtin:shapes-image", "--json", base=AROUND, b=AROUND)
    events = [json.loads(line) for line in answer.out.splitlines()]
    assert events[0]["event"] == "started" and events[0]["arm"] == "base"
    turns = [(event["arm"], event["round"]) for event in events if event["event"] == "turn_finished"]
    assert turns[:6] == [("base", 0), ("b", 0), ("base", 1), ("b", 1), ("b", 2), ("base", 2)] and len(turns) == 18
    assert (events[-1]["event"], events[-1]["report"]["verdict"]) == ("compared", "NO_CHANGE")
    assert list(events[-1]["dumps"]) == ["base", "b"]


def test_what_outputs_are_compared_with_is_made_before_the_race(bench, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(contest, "prepare_references", lambda plan, **how: made.append((plan.tag, plan.quality.tier)))
    write_recipe(tmp_path, "near.yaml", quality={"tier": "near", "reference": {"without": ["stages"]}})
    assert bench(*SHAPES, "--arm", "near=near.yaml", base=AROUND, near=AROUND).code == 0
    assert made == [("base", "none"), ("near", "near")]


def test_prompts_that_only_one_arm_could_read_are_refused(bench):
    answer = bench("builtin:shapes-image", "--prompt-file", "-", base=AROUND)
    assert (answer.code, answer.err.splitlines()[0]) == (
        2,
        "error: sampling.prompts.file: arms that take turns cannot read standard input; name a file",
    )


def test_help_says_what_is_its_own(difftool):
    page = difftool("bench", "--help").out
    assert page[page.index("Options:") :] == OPTIONS


def test_diffusers_own_pipeline_needs_no_word_to_be_comparable(bench):
    answer = bench(*SHAPES, "--vs", "diffusers", base=AROUND, diffusers=slower(0.2))
    assert (answer.code, answer.out.split(":")[0]) == (0, "# REGRESSED")
    assert "- workload: different, accepted" in answer.out and "model.backend: auto -> diffusers" in answer.out


def test_an_arm_without_memory_even_when_the_others_have_ended_is_the_end(bench):
    failed = bench(*SHAPES, "--arm", "b=builtin:shapes-image", base=AROUND, b="memory")
    assert "round 8  base" in failed.err and failed.code == 5 and "error: arm b: MemoryError" in failed.err
    assert "W-NOT-INTERLEAVED: arm b does not fit into memory beside base" in failed.err


@pytest.fixture
def environment(tmp_path):
    """The python of another environment, which has this difftool."""
    python = tmp_path / "other-python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={TESTS.parent} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def test_the_refusal_of_another_environment_is_told(bench, environment, tmp_path):
    write_recipe(tmp_path, "old.yaml", serve={"port": 8000})
    answer = bench(*SHAPES, "--arm", f"old=old.yaml@{environment}", base=AROUND)
    assert answer.code == 2 and "serve.port=8000: not available yet" in answer.err


def test_an_environment_without_difftool_cannot_take_part(bench, tmp_path):
    (tmp_path / "bare").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bare").chmod(0o755)
    answer = bench(*SHAPES, "--arm", "old=@./bare", base=AROUND)
    assert (answer.code, answer.err) == (
        3,
        "error: arm old: ./bare has no difftool that takes part\n"
        "hint: install it there, in a version that can: ./bare -m pip install difftool\n",
    )


NOTHING = "hint: name another arm: --arm, --vs diffusers or --sweep\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--gate",), f"error: there is nothing to compare\n{NOTHING}"),
        (("-o", "r.md"), f"error: there is nothing to compare\n{NOTHING}"),
        (
            ("--arm", "new"),
            "error: --arm new: write NAME=RECIPE or NAME=RECIPE@PYTHON\nhint: such as --arm new=new.yaml\n",
        ),
        (
            ("--arm", "base=builtin:shapes-image"),
            "error: two arms are called 'base'; base is the RECIPE itself\n"
            "hint: give each another name: --arm NAME=RECIPE\n",
        ),
        (
            ("--arm", "old=@/no/python"),
            "error: --arm old=@/no/python: '/no/python' is no program\n"
            "hint: give the path of an environment's python, such as .venv-base/bin/python\n",
        ),
        (("--max-time", "soon"), "error: --max-time soon: is no time\nhint: write 90s, 20m or 1h\n"),
        (
            ("--sweep", "perf.tag=x"),
            "error: --sweep: no point differs from the recipe itself\nhint: give other values\n",
        ),
        (
            ("--quiet", "--json"),
            "error: --quiet and --json exclude each other\nhint: --json prints only events already\n",
        ),
        (
            ("--vs", "diffusers", "--threshold", "totl=3%"),
            "error: --threshold totl: no dump has this metric\nhint: one of total, input_validation, text_encoding, "
            "image_encoding, image_vae_encoding, latent_preparation, timestep_preparation, denoising, decoding, step, "
            "save, load, peak_memory, peak_host_memory\n",
        ),
    ],
)
def test_what_cannot_be_raced_is_refused_before_anything_starts(bench, arguments, said, tmp_path):
    answer = bench(*SHAPES, *arguments)
    assert (answer.code, answer.err) == (2, said)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("45", 45)])
def test_times_are_read_in_any_unit(text, seconds):
    from difftool.cli.bench import read_time

    assert read_time(text) == seconds


@pytest.mark.slow
def test_the_page_s_commands_run_and_its_sweep_is_one(bench, environment, tmp_path, monkeypatch):
    page = (TESTS.parent / "docs" / "bench.md").read_text()
    (sweep,) = re.findall(r"^```text\n(.*?)^```", page, re.M | re.S)
    (tmp_path / ".venv-new" / "bin").mkdir(parents=True)
    environment.rename(tmp_path / ".venv-new" / "bin" / "python")

    def here(spec, *, save_output):
        return contest.LocalArm(spec.name, plan_arm(spec, save_output=save_output))

    monkeypatch.setattr(contest, "FarArm", here)  # the far end has its own tests
    for name in ("base.yaml", "new.yaml"):
        (tmp_path / name).write_text("model: builtin:shapes-image\nsampling: {prompt: a red circle}\n")
    (commands,) = re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)
    for line in commands.splitlines():
        program, command, *words = shlex.split(line.partition("  #")[0])
        assert (program, command) == ("difftool", "bench")
        assert bench(*words, "--repeats", 6, others=AROUND).code == 0, line
    (tmp_path / "base.yaml").write_text((tmp_path / "base.yaml").read_text() + sweep)
    answer = bench("base.yaml", "--quiet", "-o", "r.json", others=AROUND)
    found = json.loads((tmp_path / "r.json").read_text())["comparisons"]
    assert answer.code == 0 and [one["new"]["tag"] for one in found] == [
        "stages.decoding.precision=bf16, launch.threads=1",
        "stages.decoding.precision=bf16, launch.threads=2",
        "stages.decoding.precision=fp32, launch.threads=1",
    ]


OPTIONS = """\
Options:
  -c, --config RECIPE         the same as RECIPE
  -s, --set KEY=VALUE         any key of the recipe; repeatable
  --help-all                  show every flag
  --arm NAME=RECIPE[@PYTHON]  another recipe, or another environment's;
                              repeatable
  --vs diffusers              diffusers' own pipeline of the model
  --sweep KEY=A,B             an arm for each value, or combination of them;
                              repeatable
  --max-time TIME             90s, 20m or 1h: no further round starts; default
                              20m
  --gate                      exit 10 REGRESSED, 11 QUALITY_FAILED, 12
                              INCONCLUSIVE or INCOMPARABLE
  --threshold METRIC=AMOUNT   the least change that counts, as total=3%,50ms;
                              repeatable
  --allow-mismatch KEY        go on though workload, device or device_count
                              differs; repeatable
  -o, --output FILE           write the report as .md, .json or .xml (JUnit);
                              repeatable
  --github                    append the step summary, annotate, and write
                              comment.md (GitHub Actions)
  -q, --quiet                 print only the report
  -v, --verbose               show the worker's log on stderr
  --json                      print every event as one JSON object a line
  --help                      show this page
"""

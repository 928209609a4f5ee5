"""`difftool generate` from the command line to the last line it prints, with a worker that needs no model."""

import json
import re
from pathlib import Path

import pytest
from tiny import RECORDS

RECIPE = "model: builtin:shapes-image\nsampling: {prompt: [a red circle, a blue circle], seed: 7}\n"


@pytest.fixture
def recipe(difftool) -> str:
    Path("r.yaml").write_text(RECIPE)
    return "r.yaml"


def records() -> Path:
    (folder,) = Path("outputs/.difftool").iterdir()
    return folder


def test_a_run_prints_media_on_stdout_and_the_stages_on_stderr(difftool, worker, recipe):
    worker("succeed")
    answer = difftool("generate", recipe)
    assert (answer.code, answer.out) == (0, "outputs/0.png\noutputs/1.png\n")
    assert answer.err == (
        "loads transformer 2.8M bf16 -> fp32 in 0.2 s\n"
        "loaded in 0.5 s\n"
        "[1/2] 0, seed 7: a red circle\n"
        "[1/2] denoising 40.0 ms\n"
        "[2/2] 1, seed 8: a blue circle\n"
        "[2/2] denoising 40.0 ms\n"
        "stage          ms, median of 2\n"
        "text_encoding              1.5\n"
        "denoising                 40.0\n"
        "decoding                   8.5\n"
        "total                     50.0\n"
        f"perf dump: {records()}/perf.json\n"
    )
    assert sorted(path.name for path in records().iterdir()) == RECORDS


def test_config_is_the_same_as_the_positional(difftool, worker, recipe):
    worker("succeed")
    assert difftool("generate", "--config", recipe, "-q").out == "outputs/0.png\noutputs/1.png\n"


def test_quiet_prints_only_media(difftool, worker, recipe):
    worker("succeed")
    answer = difftool("generate", recipe, "--quiet")
    assert (answer.code, answer.out, answer.err) == (0, "outputs/0.png\noutputs/1.png\n", "")


def test_json_prints_only_events(difftool, worker, recipe):
    worker("succeed")
    answer = difftool("generate", recipe, "--json")
    names = [json.loads(line)["event"] for line in answer.out.splitlines()]
    assert (answer.code, answer.err) == (0, "")
    assert names[:5] == ["started", "load_started", "component_loaded", "loaded", "item_started"]
    assert names[-3:] == ["item_finished", "perf", "finished"]


def test_nothing_is_coloured_without_a_terminal(difftool, worker, recipe):
    worker("succeed")
    answer = difftool("generate", recipe)
    assert "\x1b" not in answer.out + answer.err


def test_a_name_with_a_suffix_is_the_one_file(difftool, worker):
    worker("succeed")
    answer = difftool("generate", "builtin:shapes-image", "-p", "a red circle", "-o", "red.png", "-q")
    assert (answer.code, answer.out) == (0, "red.png\n")


def test_a_folder_is_where_media_go(difftool, worker, recipe):
    worker("succeed")
    assert difftool("generate", recipe, "-o", "here/", "-q").out == "here/0.png\nhere/1.png\n"


def test_the_perf_dump_is_copied_and_still_leads_to_the_media(difftool, worker, recipe):
    worker("succeed")
    Path("perfs").mkdir()
    assert difftool("generate", recipe, "--perf-dump-path", "perfs/run.json").code == 0
    outputs = json.loads(Path("perfs/run.json").read_text())["samples"][0]["outputs"]
    assert [output["path"] for output in outputs] == ["../outputs/0.png", "../outputs/1.png"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere/run.json", "error: --perf-dump-path nowhere/run.json: there is no folder {here}/nowhere\n"),
        (".", "error: --perf-dump-path . is a folder\n"),
    ],
)
def test_a_perf_dump_that_cannot_be_written_is_said_before_the_launch(difftool, recipe, tmp_path, path, words):
    answer = difftool("generate", recipe, "--perf-dump-path", path)
    assert answer.code == 9
    assert answer.err.startswith(words.format(here=tmp_path))
    assert not Path("outputs").exists()


def test_a_failure_of_the_worker_is_told_with_its_hint_and_code(difftool, worker, recipe):
    worker("weights")
    answer = difftool("generate", recipe, "-q")
    assert (answer.code, answer.out) == (4, "")
    assert answer.err == ("error: transformer.safetensors ends early (denoising, item red)\nhint: fetch it again\n")


def test_the_perf_dump_of_a_failed_run_is_copied_too(difftool, worker, recipe):
    worker("weights")
    assert difftool("generate", recipe, "-q", "--perf-dump-path", "run.json").code == 4
    assert json.loads(Path("run.json").read_text())["status"] == "failed"


def test_a_failure_is_the_last_event_of_the_json_stream(difftool, worker, recipe):
    worker("weights")
    answer = difftool("generate", recipe, "--json")
    assert json.loads(answer.out.splitlines()[-1]) == {
        "event": "error",
        "kind": "WeightsError",
        "exit_code": 4,
        "message": "transformer.safetensors ends early",
        "hint": "fetch it again",
        "stage": "denoising",
        "item": 0,
        "item_id": "red",
    }


def test_a_refusal_by_the_worker_does_not_say_that_nothing_was_launched(difftool, worker, recipe):
    worker("recipe")
    answer = difftool("generate", recipe, "-q")
    assert (answer.code, answer.err) == (
        2,
        "error: the checkpoint has no negative branch (denoising, item red)\n",
    )


def test_a_crash_shows_the_last_words_and_the_log(difftool, worker, recipe):
    worker("kill")
    answer = difftool("generate", recipe, "-q")
    assert answer.code == 6
    assert answer.err == (
        "error: the worker was killed by SIGKILL, likely out of host memory in denoising of item 0, "
        "after step 1 of 2\n"
        "  | last words of the worker\n"
        f"hint: the whole log is {records().absolute()}/worker.log\n"
    )


def test_verbose_shows_the_log_of_the_worker(difftool, worker, recipe):
    worker("exit-3")
    answer = difftool("generate", recipe, "--verbose")
    assert "\x1b[31mlast words of the worker\x1b[0m\n" in answer.err


def test_a_dry_run_is_the_plan(difftool, recipe):
    planned = difftool("plan", recipe)
    assert planned.code == 0 and planned.out.startswith("plan      r\n")
    assert difftool("generate", recipe, "--dry-run") == planned
    assert not Path("outputs").exists()


def test_a_plan_is_one_json_object(difftool, recipe):
    plan = json.loads(difftool("plan", recipe, "--json").out)
    assert [item["prompt"] for item in plan["items"]] == ["a red circle", "a blue circle"]


def test_the_resolved_recipe_makes_the_same_plan(difftool, recipe):
    resolved = difftool("plan", recipe, "--resolved")
    Path("again.yaml").write_text(resolved.out)
    first, again = (json.loads(difftool("plan", name, "--json").out) for name in (recipe, "again.yaml"))
    assert first["recipe_sha256"] == again["recipe_sha256"]


def test_resolved_and_json_exclude_each_other(difftool, recipe):
    assert difftool("plan", recipe, "--resolved", "--json").code == 2


def test_flags_and_sets_reach_the_recipe(difftool):
    words = "plan builtin:shapes-image --json --seed 9 --enforce-eager --text-encoder-precisions fp32"
    sets = ["-p", "one", "-p", "1e3", "-s", "sampling.seed=11", "--set", "perf.tag=x"]
    answer = difftool(*words.split(), *sets)
    assert answer.code == 0, answer.err
    plan = json.loads(answer.out)
    assert [item["prompt"] for item in plan["items"]] == ["one", "1e3"]
    assert [item["seed"] for item in plan["items"]] == [11, 12]
    assert plan["recipe"]["stages"]["denoising"]["compile"] == "none"
    assert (plan["tag"], plan["provenance"]["sampling.seed"]) == ("x", "--set sampling.seed=11")


def test_saving_can_be_turned_off_and_frames_on(difftool):
    words = ["plan", "builtin:shapes-image", "-p", "x", "--json"]
    output = json.loads(difftool(*words, "--no-save-output", "--return-frames").out)["output"]
    assert (output["save"], output["return_frames"]) == (False, True)
    output = json.loads(difftool(*words).out)["output"]
    assert (output["save"], output["return_frames"]) == (True, False)


def test_sglang_variables_draw_one_warning(difftool, monkeypatch):
    monkeypatch.setenv("SGLANG_CACHE_DIT_FN", "8")
    answer = difftool("plan", "builtin:shapes-image", "-p", "x")
    assert answer.code == 0
    assert answer.err == (
        "warning: SGLANG_CACHE_DIT_FN: set, but difftool reads no such variable; in the recipe, write\n"
        "  cache:\n"
        "    fn_compute_blocks: 8\n"
    )


def test_run_ids_of_records_are_times(difftool, worker, recipe):
    worker("succeed")
    difftool("generate", recipe, "-q")
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{6}", records().name)


def test_resume_makes_what_is_missing_and_names_all(difftool, worker, recipe):
    worker("succeed")
    difftool("generate", recipe)
    Path("outputs/1.png").unlink()
    answer = difftool("generate", recipe, "--resume")
    assert (answer.code, answer.out) == (0, "outputs/0.png\noutputs/1.png\n")
    assert answer.err.startswith(f"resumes {records().name}: 1 items are there, 1 to make\n")
    assert "[2/2] 1, seed 8: a blue circle\n" in answer.err and "[1/2]" not in answer.err
    assert {path.name for path in records().iterdir()} >= {"perf.1.json", "worker.1.log", "perf.json", "worker.log"}


def test_resume_of_a_run_that_is_whole_starts_nothing(difftool, worker, recipe):
    worker("succeed")
    difftool("generate", recipe)
    worker("bug")
    answer = difftool("generate", "--resume", recipe, "-q")
    assert answer == (answer.__class__)(0, "outputs/0.png\noutputs/1.png\n", "")


@pytest.mark.parametrize("words", [["--resume", "{run}", "r.yaml"], ["r.yaml", "--resume={run}"]])
def test_resume_takes_a_run_id(difftool, worker, recipe, words):
    worker("succeed")
    difftool("generate", recipe)
    first = records().name
    difftool("generate", recipe)
    given = [word.format(run=first) for word in words]
    assert f"resumes {first}: 2 items are there, 0 to make\n" in difftool("generate", *given).err


def test_resume_without_a_run_is_refused(difftool, recipe):
    answer = difftool("generate", recipe, "--resume")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == (
        f"error: there is no run to resume in {Path.cwd()}/outputs\n"
        "hint: leave --resume out to start one\n"
        "1 error; nothing was launched\n"
    )


def test_resume_with_another_recipe_says_what_differs(difftool, worker, recipe):
    worker("succeed")
    difftool("generate", recipe)
    answer = difftool("generate", recipe, "--resume", "--num-inference-steps", "3", "-s", "output.format=jpg")
    assert answer.code == 2
    assert answer.err.startswith(
        f"error: this recipe is not that of run {records().name}\n"
        "  | output.format is 'jpg', was 'png'\n"
        "  | item 0: sampling.num_inference_steps is 3, was 20\n"
        "  | item 1: sampling.num_inference_steps is 3, was 20\n"
        "hint: resume with the same recipe and flags, or leave --resume out\n"
    )


def test_a_random_seed_is_the_drawn_one_when_a_run_is_resumed(difftool, worker):
    Path("r.yaml").write_text(
        "model: builtin:shapes-image\n"
        "sampling: {prompts: [{prompt: a red circle, seed: random}, {prompt: a blue circle}], seed: random}\n"
    )
    worker("succeed")
    difftool("generate", "r.yaml")
    Path("outputs/0.png").unlink()
    before = json.loads((records() / "plan.json").read_text())
    assert difftool("generate", "r.yaml", "--resume").code == 0
    after = json.loads((records() / "plan.json").read_text())
    assert (after["items"], after["recipe"]["sampling"]) == (before["items"], before["recipe"]["sampling"])


def test_items_that_failed_are_listed_at_the_end_with_exit_8(difftool, worker, recipe):
    worker("fail-some")
    answer = difftool("generate", recipe, "--keep-going")
    assert (answer.code, answer.out) == (8, "outputs/1.png\n")
    assert "[1/2] 0 failed: KeyError: 'rope'\n" in answer.err
    assert answer.err.endswith(
        "error: 1 of 2 items failed\n"
        "  | 0: KeyError: 'rope'\n"
        f"hint: --resume makes them again; their tracebacks are in {records().absolute()}/worker.log\n"
    )


def test_keep_going_is_part_of_the_plan_and_fail_fast_the_default(difftool, recipe):
    plans = [difftool("plan", recipe, "--json", *words).out for words in ([], ["--keep-going"], ["--fail-fast"])]
    assert [json.loads(plan)["keep_going"] for plan in plans] == [False, True, False]

"""What a comparison says, and what it refuses to say. One pair of dumps for every way to be misled."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from report.dumps import SAMPLE, dump

from difftool.report.comparable import Change
from difftool.report.compare import Report, Rules, compare, json_schema
from difftool.report.markdown import render_markdown, sparkline
from difftool.report.measured import DumpError, read_measured
from difftool.report.perf import write_perf
from difftool.report.sglang import stage_name
from difftool.report.verdict import Verdict, worst

RECIPE = {
    "name": "red",
    "model": {"path": "builtin:shapes-image"},
    "stages": {"denoising": {"precision": "auto"}},
    "parallel": {"num_gpus": 1, "ulysses": 1},
    "sampling": {"prompt": "a red circle", "num_inference_steps": 2},
    "output": {"dir": "a", "format": "auto"},
}
ENV = {
    "python": "3.12.1",
    "device": {"kind": "cuda", "name": "NVIDIA H100", "memory_mb": 81559},
    "fingerprint": "f",
}
BARE = {
    "timestamp": "2026-11-21T12:00:00+00:00",
    "request_id": "r",
    "commit_hash": "N/A",
    "tag": "cli_generate",
    "total_duration_ms": 6693.0,
    "steps": [
        {"name": "InputValidationStage", "duration_ms": 0.04},
        {"name": "TextEncodingStage", "duration_ms": 50.0},
        {"name": "DenoisingStage", "duration_ms": 6500.0},
        {"name": "DecodingStage", "duration_ms": 140.0},
    ],
    "denoise_steps_ms": [{"step": i, "duration_ms": 130.0} for i in range(50)],
    "memory_checkpoints": {"after_forward": {"peak_allocated_mb": 34000.0, "peak_host_anon_mb": 0.0}},
    "meta": {"prompt": "a shop", "model": "black-forest-labs/FLUX.1-dev"},
}
Write = Callable[..., Path]


def recipe(sha: str = "w", **sections: Any) -> dict[str, Any]:
    resolved = {**RECIPE, **sections}
    return {"name": "red", "sha256": "r", "workload_sha256": sha, "resolved": resolved, "provenance": {"model": sha}}


def sample(**changes: Any) -> dict[str, Any]:
    return {**SAMPLE, **changes}


@pytest.fixture
def write(tmp_path, monkeypatch) -> Write:
    """Writes a dump of ours into the current folder; a plain mapping is written as it is."""
    monkeypatch.chdir(tmp_path)

    def written(name: str, content: dict[str, Any] | None = None, **changes: Any) -> Path:
        path = Path(name)
        if content is not None:
            path.write_text(json.dumps(content))
        else:
            write_perf(path, dump(**{"recipe": recipe(), "env": ENV, **changes}))
        return path

    return written


def report(*paths: Path, accepted: tuple[str, ...] = ()) -> Report:
    base, *news = [read_measured(path) for path in paths]
    return compare(base, news, Rules(accepted=accepted))


def changes(found: list[Change]) -> list[str]:
    return [f"{change.key}: {change.base} -> {change.new}" for change in found]


def metric(found: Report, name: str) -> Any:
    return next(entry for entry in found.comparisons[0].metrics if entry.name == name)


def test_identical_single_runs_are_inconclusive_and_say_how_many_repeats_to_type(write):
    found = report(write("a.json"), write("b.json"))
    assert found.verdict == "INCONCLUSIVE"
    names = [entry.name for entry in found.comparisons[0].metrics]
    assert names == ["total", "denoising", "decoding", "step", "save", "load", "peak_memory", "peak_host_memory"]
    assert {(entry.ratio, entry.verdict, entry.reason) for entry in found.comparisons[0].metrics} == {
        (1.0, "INCONCLUSIVE", "too_few_samples")
    }
    assert metric(found, "total").detail == "1 against 1 run; 5 more repeats of each"
    assert metric(found, "load").detail == "1 against 1 run; a run loads once, and --repeats adds none"
    assert metric(found, "save").detail == "1 against 1 run; a run saves its first repeat, and --repeats adds none"


def test_half_the_steps_are_other_work_not_an_improvement(write):
    fewer = recipe("v", sampling={**RECIPE["sampling"], "num_inference_steps": 1})
    found = report(write("a.json"), write("b.json", recipe=fewer))
    assert found.verdict == "INCOMPARABLE"
    (comparison,) = found.comparisons
    assert (comparison.metrics, comparison.steps, comparison.memory) == ([], [], [])
    assert [check.state for check in comparison.checks] == ["different", "same", "same"]
    assert changes(comparison.checks[0].differences) == ["sampling.num_inference_steps: 2 -> 1"]
    assert comparison.treatment == []


def test_another_model_is_named(write):
    found = report(write("a.json"), write("b.json", recipe=recipe("v", model={"path": "me/other", "lora": []})))
    assert found.verdict == "INCOMPARABLE"
    assert changes(found.comparisons[0].checks[0].differences) == [
        "model.path: builtin:shapes-image -> me/other",
        "model.lora: (absent) -> []",
    ]


def test_weights_that_differ_under_the_same_recipe_are_seen_by_the_hash(write):
    found = report(write("a.json"), write("b.json", recipe=recipe("v")))
    assert changes(found.comparisons[0].checks[0].differences) == ["workload_sha256: w -> v"]


def test_an_accepted_mismatch_gives_numbers_and_stays_in_the_report(write):
    paths = write("a.json"), write("b.json", recipe=recipe("v"), env={**ENV, "device": {"kind": "cpu", "name": "x"}})
    assert report(*paths, accepted=("workload",)).verdict == "INCOMPARABLE"
    found = report(*paths, accepted=("workload", "device"))
    assert found.verdict == "INCONCLUSIVE"
    assert [check.state for check in found.comparisons[0].checks] == ["accepted", "accepted", "same"]


def test_another_device_model_is_incomparable_and_the_same_with_other_memory_is_not(write):
    other = {**ENV, "device": {**ENV["device"], "name": "NVIDIA H200"}}
    found = report(write("a.json"), write("b.json", env=other))
    assert found.verdict == "INCOMPARABLE"
    assert changes(found.comparisons[0].checks[1].differences) == ["device: cuda NVIDIA H100 -> cuda NVIDIA H200"]
    smaller = {**ENV, "python": "3.13.0", "fingerprint": "g", "device": {**ENV["device"], "memory_mb": 40000}}
    found = report(Path("a.json"), write("b.json", env=smaller))
    assert found.verdict == "INCONCLUSIVE"
    assert changes(found.comparisons[0].environment) == [
        "env.python: 3.12.1 -> 3.13.0",
        "env.device.memory_mb: 81559 -> 40000",
    ]


def test_more_devices_are_the_treatment_where_parallel_differs(write):
    run = {"id": "x", "difftool": "0.1.0", "world_size": 2}
    two = recipe(parallel={"num_gpus": 2, "ulysses": 2})
    (comparison,) = report(write("a.json"), write("b.json", run=run, recipe=two)).comparisons
    assert comparison.checks[2].state == "treatment"
    assert changes(comparison.treatment) == ["parallel.num_gpus: 1 -> 2", "parallel.ulysses: 1 -> 2"]
    found = report(Path("a.json"), write("c.json", run=run))
    assert (found.verdict, found.comparisons[0].checks[2].state) == ("INCOMPARABLE", "different")


def test_the_treatment_is_what_changes_a_measurement_and_what_was_really_applied(write):
    other = recipe(stages={"denoising": {"precision": "bf16"}}, name="blue", output={"dir": "b", "format": "npz"})
    effective = {"attention": {"status": "applied", "backend": "flash"}}
    found = report(write("a.json"), write("b.json", recipe=other, effective=effective))
    assert changes(found.comparisons[0].treatment) == [
        "stages.denoising.precision: auto -> bf16",
        "output.format: auto -> npz",
        "effective.attention.status: (absent) -> applied",
        "effective.attention.backend: (absent) -> flash",
    ]


def test_one_warm_up_against_none_is_told(write):
    measure = {**dump().measure.model_dump(), "warmup": 1}
    found = report(write("a.json"), write("b.json", measure=measure))
    assert changes(found.comparisons[0].environment) == ["measure.warmup: 0 -> 1"]


def test_doubled_memory_is_shown(write):
    points = {"after_denoising": {"peak_allocated_mb": 300.0, "allocated_mb": 100.0}}
    twice = {"after_denoising": {"peak_allocated_mb": 600.0, "allocated_mb": 100.0}}
    base = write("a.json", samples=[sample(memory_checkpoints=points)])
    found = report(base, write("b.json", samples=[sample(memory_checkpoints=twice, peak_memory_mb=600.0)]))
    assert (metric(found, "peak_memory").ratio, metric(found, "peak_memory").unit) == (2.0, "MiB")
    assert [(pair.reading, pair.base_mb, pair.new_mb) for pair in found.comparisons[0].memory] == [
        ("peak_allocated_mb", 300.0, 600.0),
        ("allocated_mb", 100.0, 100.0),
    ]
    assert "| after_denoising | peak_allocated | 300.0 | 600.0 | 2.000 |" in render_markdown(found)


def test_one_step_that_spikes_is_seen_though_the_median_is_the_same(write):
    steps = [{"step": i, "duration_ms": 98.0, "kind": "compute"} for i in range(30)]
    spiked = [{**step, "duration_ms": 198.0 if step["step"] == 7 else 98.0} for step in steps]
    found = report(
        write("a.json", samples=[sample(denoise_steps_ms=steps)]),
        write("b.json", samples=[sample(denoise_steps_ms=spiked)]),
    )
    assert metric(found, "step").ratio == 1.0
    text = render_markdown(found)
    assert f"base  {'▄' * 30}  30 steps, 98.0 to 98.0 ms\nnew   {'▄' * 7}█{'▄' * 22}  30 steps" in text
    assert "The steps that moved:\n\n| step | base ms | new ms | ratio |\n" in text
    assert "| 7 | 98.0 | 198.0 | 2.020 |\n" in text


def test_of_many_steps_that_moved_the_table_has_the_five_that_moved_most(write):
    steps = [{"step": i, "duration_ms": 50.0, "kind": "compute"} for i in range(10)]
    moved = [{**step, "duration_ms": 51.0 + step["step"] % 7} for step in steps]
    base = write("a.json", samples=[sample(denoise_steps_ms=steps)])
    text = render_markdown(report(base, write("b.json", samples=[sample(denoise_steps_ms=moved)])))
    table = text.partition("The 5 of 10 steps that moved most:\n\n")[2].partition("\n\n")[0]
    assert [line.split(" ")[1] for line in table.splitlines()[2:]] == ["2", "3", "4", "5", "6"]


def test_cached_steps_are_marked(write):
    cached = [{"step": i, "duration_ms": 50.0 / (i + 1), "kind": ("compute", "cached")[i]} for i in range(2)]
    text = render_markdown(report(write("a.json"), write("b.json", samples=[sample(denoise_steps_ms=cached)])))
    assert "new   █▅  2 steps, 1 of them cached, 25.0 to 50.0 ms\n" in text
    assert "| 1 | 50.0 | 25.0 (cached) | 0.500 |\n" in text


def test_what_a_cache_did_is_said_beside_the_steps_and_its_samples_are_no_treatment(write):
    did = {"backend": "dbcache", "hit_rate": 0.5, "reused_steps": 1, "steps": 2, "flop_ideal_speedup": 1.6}
    cached = write("b.json", effective={"cache": {**did, "samples": [{"item": 0}]}})
    found = report(write("a.json"), cached)
    line = "- new: dbcache reused 1 of 2 steps (50 %), 1.60x by FLOPs at best\n"
    assert line in render_markdown(found)
    assert not [change for change in found.comparisons[0].treatment if "samples" in change.key]


def test_a_stage_that_only_one_has_has_no_ratio(write):
    stages = {**SAMPLE["stages_ms"], "image_encoding": 5.0}
    found = report(write("a.json"), write("b.json", stages_ms=stages, samples=[sample(stages_ms=stages)]))
    entry = metric(found, "image_encoding")
    assert (entry.base, entry.new.median, entry.ratio, entry.detail) == (None, 5.0, None, "base does not have it")


def test_medians_are_of_all_samples_and_items_are_no_repeats(write):
    samples = [sample(item=i, id=str(i), total_ms=100.0 + i) for i in range(7)]
    found = report(write("a.json", samples=samples), write("b.json"))
    assert (found.base.items, found.base.runs) == (7, 1)
    assert (metric(found, "total").base.n, metric(found, "total").base.median) == (7, 103.0)
    assert metric(found, "total").reason == "too_few_samples"


def test_what_disturbed_arms_that_took_turns_is_no_reason_to_doubt_them(write):
    def arm(name, ms, order):
        samples = [sample(repeat=i, total_ms=ms + i) for i in range(8)]
        measure = {**dump().measure.model_dump(), "order": order}
        warnings = [{"code": "W-NOISY-NEIGHBOUR", "message": "x"}]
        return write(name, samples=samples, measure=measure, warnings=warnings)

    found = report(arm("a.json", 1000.0, "sequential"), arm("b.json", 1200.0, "sequential"))
    assert (metric(found, "total").verdict, metric(found, "total").reason) == ("INCONCLUSIVE", "noisy")
    assert metric(found, "total").detail.endswith("for W-NOISY-NEIGHBOUR of base and W-NOISY-NEIGHBOUR of new")
    found = report(arm("a.json", 1000.0, "ABBA"), arm("b.json", 1200.0, "ABBA"))
    assert metric(found, "total").verdict == "REGRESSED"


def test_the_worst_verdict_is_the_overall_one():
    assert worst([Verdict.IMPROVED, Verdict.NO_CHANGE]) is Verdict.IMPROVED
    assert worst([Verdict.INCONCLUSIVE, Verdict.REGRESSED, Verdict.IMPROVED]) is Verdict.REGRESSED
    assert worst([Verdict.REGRESSED, Verdict.QUALITY_FAILED]) is Verdict.QUALITY_FAILED
    assert worst(Verdict) is Verdict.INCOMPARABLE


def test_bare_dumps_of_sglang_are_compared_by_what_they_record(write):
    slower = {**BARE, "total_duration_ms": 8700.0}
    found = report(write("a.json", BARE), write("b.json", slower))
    assert found.verdict == "INCONCLUSIVE"
    assert {check.state for check in found.comparisons[0].checks} == {"not_recorded"}
    assert [entry.name for entry in found.comparisons[0].metrics] == [
        *("total", "input_validation", "text_encoding", "denoising", "decoding", "step", "peak_memory"),
    ]
    assert metric(found, "total").ratio == pytest.approx(1.3, abs=1e-3)
    assert metric(found, "total").detail == "1 against 1 run; a bare SGLang dump holds one run"
    assert "without synchronisation" in found.base.notes[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"denoise_steps_ms": BARE["denoise_steps_ms"][:25]}, "denoising steps: 50 -> 25"),
        ({"meta": {"model": "me/other", "prompt": "a shop"}}, "model: black-forest-labs/FLUX.1-dev -> me/other"),
        ({"meta": {**BARE["meta"], "prompt": "a dog"}}, "prompt: a shop -> a dog"),
    ],
)
def test_bare_dumps_of_other_work_are_incomparable(write, change, said):
    found = report(write("a.json", BARE), write("b.json", {**BARE, **change}))
    assert found.verdict == "INCOMPARABLE"
    assert changes(found.comparisons[0].checks[0].differences) == [said]


def test_ours_against_a_bare_one_needs_the_user_s_word(write):
    ours = write("b.json", meta={"model": "black-forest-labs/FLUX.1-dev"})
    found = report(write("a.json", BARE), ours)
    assert found.verdict == "INCOMPARABLE"
    assert changes(found.comparisons[0].checks[0].differences) == [
        "denoising steps: 50 -> 2",
        "workload_sha256: (absent) -> w",
    ]
    found = report(Path("a.json"), ours, accepted=("workload", "device", "device_count"))
    assert found.verdict == "INCONCLUSIVE" and metric(found, "denoising").ratio


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("InputValidationStage", "input_validation"),
        ("ImageVAEEncodingStage", "image_vae_encoding"),
        ("DenoisingStage", "denoising"),
        ("decoding_stage", "decoding"),
        ("MyOwnThing2Stage", "my_own_thing2"),
    ],
)
def test_stages_of_sglang_get_our_names(theirs, ours):
    assert stage_name(theirs) == ours


def content(**changes: Any) -> str:
    return json.dumps({**json.loads(dump().model_dump_json(by_alias=True)), **changes})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "x.json is empty"),
        (content()[:400], "x.json is not JSON: it ends too early, in line 1"),
        ("{'a': 1}", "x.json is not JSON: expecting property name"),
        ('{"a": ' + "1" * 5000 + "}", "x.json is not JSON: a number in it is too long"),
        ("[" * 100_000, "x.json is not JSON: it is nested too deeply"),
        ("[1]", "x.json is no perf dump: it does not hold a mapping"),
        ('{"a": 1}', "x.json is no perf dump: it has neither schema nor total_duration_ms"),
        (content(schema="difftool.compare/v1"), "its schema is 'difftool.compare/v1', not difftool.perf/v1"),
        (content(total_duration_ms=float("nan")), "x.json is no valid perf dump: total_duration_ms is nan"),
        (content(samples=[sample(save_ms=1e999)]), "x.json is no valid perf dump: samples[0].save_ms is inf"),
        (content(meta={"model": "\ud800"}), "'meta.model' holds half a character: '\\ud800'"),
        (content(total_duration_ms=-1), "total_duration_ms: Input should be greater than or equal to 0"),
        (content(samples=[]), "x.json is no valid perf dump: it: an ok dump has at least one sample"),
        (json.dumps({**BARE, "steps": []}), "steps: List should have at least 1 item"),
        (json.dumps({**BARE, "total_duration_ms": 0}), "total_duration_ms: Input should be greater than 0"),
    ],
    ids=lambda value: value if len(value) < 80 else "",
)
def test_what_is_no_dump_is_refused_with_its_reason(write, text, said):
    Path("x.json").write_text(text)
    with pytest.raises(DumpError) as refused:
        read_measured(Path("x.json"))
    assert said in refused.value.message
    assert refused.value.message.startswith("x.json ")


def test_a_failed_run_is_refused_with_what_failed(write):
    error = {"kind": "OutOfMemoryError", "message": "too big", "stage": "denoising", "item": 0}
    path = write("x.json", status="failed", samples=[], error=error)
    with pytest.raises(DumpError, match="of a run that failed in denoising: OutOfMemoryError: too big"):
        read_measured(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(DumpError, match="x.json cannot be read: No such file or directory"):
        read_measured(tmp_path / "x.json")
    with pytest.raises(DumpError) as refused:
        read_measured(tmp_path)
    assert refused.value.hint == f"name the file: {tmp_path / 'perf.json'}"


def test_the_json_satisfies_the_published_schema_and_reads_back(write):
    found = report(write("a.json"), write("b.json", recipe=recipe("v")), write("c.json"))
    text = found.model_dump_json(by_alias=True)
    jsonschema.validate(json.loads(text), json_schema())
    assert Report.model_validate_json(text) == found
    assert json.loads(text)["schema"] == "difftool.compare/v1"


def test_text_of_a_dump_cannot_become_markup(write):
    meta = {"model": "a|b`c`\n\n# ✓ <img src=x> [x](y)\x1b[31m\u202e" + "z" * 200, "prompt": "p"}
    text = render_markdown(report(write("a.json"), write("b.json", meta=meta)))
    (row,) = [line for line in text.splitlines() if line.startswith("| new |")]
    assert "a\\|b'c' # ✓ &lt;img src=x> \\[x](y) \\[31m zzz" in row
    assert len(row) < 300


def test_more_steps_than_fit_a_line_keep_their_slowest():
    times = [1.0] * 1000
    times[500] = 2.0
    line = sparkline(times, 2.0)
    assert len(line) <= 80 and line.count("█") == 1

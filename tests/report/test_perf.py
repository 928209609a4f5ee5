"""The perf dump: what it holds, what it refuses, and what other tools can read of it."""

import json
import math

import jsonschema
import pytest
from pydantic import ValidationError
from report.dumps import SAMPLE, dump

from difftool.report.peaks import PEAKS, peak_flops, peak_of_ranks
from difftool.report.perf import PerfDump, Sample, accounting_error_pct, cost_of, json_schema, read_perf, write_perf
from difftool.report.summary import median_index, readings, summarise


def test_a_dump_reads_back_equal(tmp_path):
    write_perf(tmp_path / "perf.json", dump())
    assert read_perf(tmp_path / "perf.json") == dump()


def test_a_dump_satisfies_the_published_schema(tmp_path):
    write_perf(tmp_path / "perf.json", dump())
    jsonschema.validate(json.loads((tmp_path / "perf.json").read_text()), json_schema())


def test_the_fields_that_sglang_s_tools_read_are_there():
    content = json.loads(dump().model_dump_json(by_alias=True))
    assert content["total_duration_ms"] == 130.0
    assert content["steps"] == [{"name": "denoising", "duration_ms": 100.0}, {"name": "decoding", "duration_ms": 30.0}]
    assert [set(step) for step in content["denoise_steps_ms"]] == [{"step", "duration_ms", "kind"}] * 2
    assert {"timestamp", "request_id", "commit_hash", "tag", "memory_checkpoints", "meta"} <= content.keys()
    assert content["meta"] == {"prompt": "a red circle", "model": "builtin:shapes-image"}


def test_a_sound_is_an_output_without_width_and_height(tmp_path):
    sound = {"path": "../../bell.wav", "sha256": "ab", "width": None, "height": None}
    write_perf(tmp_path / "perf.json", dump(samples=[{**SAMPLE, "outputs": [sound]}]))
    content = json.loads((tmp_path / "perf.json").read_text())
    assert content["samples"][0]["outputs"] == [sound]
    jsonschema.validate(content, json_schema())
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        dump(samples=[{**SAMPLE, "outputs": [{**sound, "width": 0}]}])


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_times_that_cannot_be_are_refused(value):
    with pytest.raises(ValidationError):
        dump(total_duration_ms=value)


def test_numbers_deep_inside_must_be_finite_too():
    with pytest.raises(ValidationError, match="dump.env.load is nan"):
        dump(env={"load": math.nan})


def test_steps_are_numbered_without_a_gap():
    steps = [{"step": 0, "duration_ms": 1.0, "kind": "compute"}, {"step": 2, "duration_ms": 1.0, "kind": "compute"}]
    with pytest.raises(ValidationError, match="not numbered 0, 1, 2"):
        dump(samples=[{**SAMPLE, "denoise_steps_ms": steps}])


def test_an_ok_dump_has_samples_and_a_failed_one_may_have_none():
    with pytest.raises(ValidationError, match="at least one sample"):
        dump(samples=[])
    error = {"kind": "OutOfMemoryError", "message": "too big", "stage": "denoising", "item": 0}
    assert dump(samples=[], status="failed", error=error).error.stage == "denoising"


def test_a_dump_holds_what_its_outputs_are_worth(tmp_path):
    output = {"item": 0, "psnr": 20.5, "ssim": 0.7, "tier": "none", "tripwires": ["black"], "missing": ["lpips"]}
    quality = {"tier": "near", "reference": "without cache", "per_output": [output], "passed": False}
    write_perf(tmp_path / "perf.json", dump(quality={**quality, "reasons": ["output 0 is black"]}))
    read = read_perf(tmp_path / "perf.json").quality
    assert (read.passed, read.per_output[0].tripwires, read.per_output[0].max_abs) == (False, ["black"], None)
    with pytest.raises(ValidationError, match="quality.tier"):
        dump(quality={**quality, "tier": "good"})


def test_a_warning_has_a_code():
    with pytest.raises(ValidationError, match="warnings.0.code"):
        dump(warnings=[{"code": "throttled", "message": "x"}])


def test_unknown_fields_are_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        PerfDump.model_validate({**json.loads(dump().model_dump_json(by_alias=True)), "speed": 1})


def test_accounting_error_is_in_per_cent_of_the_total():
    assert accounting_error_pct(200.0, {"a": 150.0, "b": 46.0}) == pytest.approx(2.0)


def test_the_lower_median_sample_stands_for_all():
    assert median_index([3.0]) == 0
    assert median_index([30.0, 10.0, 20.0]) == 2
    assert median_index([40.0, 10.0, 20.0, 30.0]) == 2


def test_a_summary_by_hand():
    summary = summarise([10.0, 20.0, 40.0])
    assert (summary.n, summary.median, summary.mad, summary.min, summary.max) == (3, 20.0, 10.0, 10.0, 40.0)
    assert summary.cv_pct == pytest.approx(100 * 15.2753 / 23.3333, rel=1e-4)
    assert summarise([5.0]).cv_pct == 0.0


def test_a_sample_that_did_not_encode_is_no_reading_of_the_encoding():
    samples = [
        {**SAMPLE, "item": 0, "stages_ms": {"text_encoding": 30.0, "denoising": 100.0}},
        {**SAMPLE, "item": 1, "stages_ms": {"text_encoding": 0.1, "denoising": 100.0}, "reused": ["prompt"]},
    ]
    found = readings(dump(samples=samples).samples)
    assert (found["text_encoding"], found["denoising"]) == ([30.0], [100.0, 100.0])


def sampled(flops, ms):
    return Sample.model_validate({**SAMPLE, "flops": flops, "stages_ms": {"denoising": ms, "decoding": 30.0}})


def test_mfu_is_the_part_of_the_peak_that_denoising_reached():
    cost = cost_of([sampled(2e12, 10.0), sampled(4e12, 20.0)], comm_bytes=0.0, peak_flops=400e12)
    assert (cost.flops, cost.mfu) == (3e12, pytest.approx(0.5))


@pytest.mark.parametrize(
    ("samples", "peak", "flops"),
    [
        ([sampled(None, 10.0)], 1e12, None),
        ([sampled(2e12, 10.0), sampled(None, 10.0)], 1e12, None),
        ([sampled(2e12, 10.0)], None, 2e12),
        ([sampled(2e12, 0.0)], 1e12, 2e12),
    ],
    ids=["no FLOPs", "not of every sample", "no peak", "no time"],
)
def test_where_a_number_is_missing_there_is_no_mfu(samples, peak, flops):
    cost = cost_of(samples, comm_bytes=1.0, peak_flops=peak)
    assert (cost.flops, cost.mfu, cost.peak_flops) == (flops, None, peak)


def test_a_dump_from_before_there_were_flops_is_read():
    assert PerfDump.model_validate_json(dump(cost={"comm_bytes": 1.0}).model_dump_json(by_alias=True)).cost.mfu is None


def test_peaks_are_those_of_the_data_sheets_by_the_name_that_torch_tells():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == peak_flops("NVIDIA H200", "fp16") == 989.4e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "bf16") == 312e12 and peak_flops("NVIDIA L40S", "fp32") == 91.6e12
    assert peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16") is None  # a part of one is not the whole
    assert all(peak.half > peak.fp32 > 0 for peak in PEAKS.values())


def test_ranks_that_share_an_item_have_the_peak_of_all_of_them_and_one_precision():
    assert peak_of_ranks("NVIDIA H200", {"bf16"}, ranks=4) == 4 * 989.4e12
    assert peak_of_ranks("NVIDIA H200", {"bf16", "fp32"}, ranks=1) is None
    assert peak_of_ranks("AMD EPYC 9B14", {"fp32"}, ranks=1) is None

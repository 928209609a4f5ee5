"""A small perf dump with round numbers."""

from typing import Any

from difftool.report.perf import PerfDump

STEPS = [{"step": i, "duration_ms": 50.0, "kind": "compute"} for i in range(2)]
STAGES = {"denoising": 100.0, "decoding": 30.0}
SAMPLE = {
    "item": 0,
    "id": "0",
    "repeat": 0,
    "seed": 7,
    "total_ms": 130.0,
    "save_ms": 2.0,
    "stages_ms": STAGES,
    "denoise_steps_ms": STEPS,
    "memory_checkpoints": {},
    "peak_memory_mb": 300.0,
    "peak_host_memory_mb": 300.0,
    "outputs": [{"path": "../../red.png", "sha256": "ab", "width": 64, "height": 64}],
}


def dump(**changes: Any) -> PerfDump:
    """An ok dump of one sample, with changes by top-level field."""
    content = {
        "schema": "difftool.perf/v1",
        "status": "ok",
        "timestamp": "2026-11-21T12:00:00.000+00:00",
        "request_id": "20261121T120000Z-abcdef",
        "commit_hash": "N/A",
        "tag": None,
        "total_duration_ms": 130.0,
        "steps": [{"name": name, "duration_ms": ms} for name, ms in STAGES.items()],
        "denoise_steps_ms": STEPS,
        "memory_checkpoints": {},
        "meta": {"prompt": "a red circle", "model": "builtin:shapes-image"},
        "stages_ms": STAGES,
        "run": {"id": "20261121T120000Z-abcdef", "difftool": "0.1.0", "world_size": 1},
        "recipe": {"name": "x", "sha256": "a", "workload_sha256": "b", "resolved": {}, "provenance": {}},
        "env": {},
        "measure": {
            "warmup": 0,
            "warmup_ms": [],
            "repeats": 1,
            "order": "sequential",
            "clock": "perf_counter",
            "synced": "once per stage",
            "load_ms": 900.0,
            "cold_start_ms": 5000.0,
            "accounting_error_pct": 0.0,
        },
        "samples": [SAMPLE],
        "summary": {},
        "throughput": {"outputs_per_s": 7.7},
        "ranks": [],
        "effective": {},
        "warnings": [],
        "error": None,
    }
    return PerfDump.model_validate({**content, **changes})

"""`difftool bench` with real workers: the built-in model against diffusers' pipeline and another environment."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from tiny import ROOT, difftool

from difftool.report.booking import NOTE
from difftool.report.perf import read_perf


@pytest.mark.slow
def test_the_built_in_model_races_diffusers_and_another_environment(tmp_path):
    python = tmp_path / "other-python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    request = ("-p", "a red circle", "--num-inference-steps", 2, "--output-path", "made", "--repeats", 2)
    arms = ("--vs", "diffusers", "--arm", f"again=@{python}", "--max-time", "1s")
    done = difftool("bench", "builtin:shapes-image", *request, *arms, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    events = [json.loads(line) for line in done.stdout.splitlines()]
    turns = [(event["arm"], event["round"]) for event in events if event["event"] == "turn_finished"]
    assert turns == [(arm, number) for number in (0, 1) for arm in ("base", "again", "diffusers")]
    assert {event["arm"] for event in events if event["event"] == "stage_finished"} == {"base", "again", "diffusers"}

    dumps = {name: read_perf(tmp_path / path) for name, path in events[-1]["dumps"].items()}
    pictures = []
    for name, dump in dumps.items():
        (sample,) = dump.samples
        assert (dump.tag, dump.measure.order, len(dump.measure.warmup_ms)) == (name, "ABBA", 1)
        assert (dump.measure.load_ms > 0, len(sample.denoise_steps_ms)) == (True, 2)
        (file,) = sample.outputs
        pictures.append(np.asarray(Image.open((tmp_path / events[-1]["dumps"][name]).parent / file.path)))
    assert all((picture == pictures[0]).all() for picture in pictures)  # the same picture, so the same work
    assert dumps["diffusers"].recipe.resolved["model"]["backend"] == "diffusers"

    report = events[-1]["report"]
    found = {
        one["new"]["tag"]: {check["key"]: check["state"] for check in one["checks"]} for one in report["comparisons"]
    }
    assert (found["again"]["workload"], found["diffusers"]["workload"]) == ("same", "accepted")
    notes = {one["new"]["tag"]: NOTE in one["new"]["notes"] for one in report["comparisons"]}
    assert notes == {"again": False, "diffusers": True}
    assert report["verdict"] == "INCONCLUSIVE"  # one run of each cannot decide

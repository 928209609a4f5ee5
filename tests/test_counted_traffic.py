"""A run counts what `difftool plan` said that it would send and hold."""

import json

import pytest
from test_multi_rank import SHAPES, SHORT
from tiny import difftool, read_json

MIB = 2**20


@pytest.mark.slow
def test_four_ranks_send_and_hold_what_was_predicted(tmp_path):
    request = [SHAPES, "-p", "a green triangle", *SHORT, "--device", "cpu", "--num-gpus", 4, "--dp-size", 2]
    request += ["--ulysses-degree", 2, "--warmup", 1, "--repeats", 2]
    planned = difftool("plan", *request, "--json", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    prediction = json.loads(planned.stdout)["prediction"]
    done = difftool("generate", *request, "-p", "a red ring", "--perf-dump-path", "perf.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    dump = read_json(tmp_path / "perf.json")
    for rank, said in zip(dump["ranks"], prediction["ranks"], strict=True):
        assert rank["samples"] == 2  # repeats of the replica's one item, without the warm-up
        counted = {
            (line, name): (sent["calls"], sent["bytes"])
            for line, each in rank["comm"].items()
            for name, sent in each.items()
        }
        assert counted == {(s["line"], s["collective"]): (2 * s["calls"], 2 * s["bytes"]) for s in said["item"]}
        assert rank["weights_mb"] == pytest.approx(sum(said["weights"].values()) / MIB)
    item = sum(sent["bytes"] for rank in prediction["ranks"] for sent in rank["item"]) / 2  # two replicas, an item each
    assert dump["cost"]["comm_bytes"] == item

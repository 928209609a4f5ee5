"""`difftool profile` on real runs: traces that hold every stage, step, block, rank and collective they should."""

import gzip
import json
import os
import re
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from nsys.installing import install_nsys
from tiny import difftool

from difftool.engine import Kept, run_plan
from difftool.errors import PlanError
from difftool.launch import open_records
from difftool.parallel.world import World
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.plan import ProfilePlan
from difftool.recipe.load import load_recipe
from difftool.report.perf import read_perf
from difftool.worker import Events

REQUEST = ("builtin:shapes-image", "-p", "a red circle", "--device", "cpu", "-q", "--perf-dump-path", "perf.json")
STAGES = ["input_validation", "text_encoding", "latent_preparation", "timestep_preparation", "denoising", "decoding"]


def profiled(folder: Path, *arguments: object):
    """The dump's profile, and the names of the complete events of every trace, by rank."""
    done = difftool("profile", *REQUEST, *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    profile = read_perf(folder / "perf.json").profile
    return profile, {trace.rank: names(folder / trace.path) for trace in profile.traces}


def complete_events(trace: Path) -> list[dict[str, object]]:
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return [event for event in events if event.get("ph") == "X" and event.get("cat") != "gpu_user_annotation"]


def names(trace: Path) -> Counter[str]:
    return Counter(event["name"] for event in complete_events(trace))


def ranges(found: Counter[str], kind: str) -> list[str]:
    return sorted(name.removeprefix(kind) for name in found if name.startswith(kind))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two_ranks(folder):
    """Three of six steps on two ranks that exchange attention heads."""
    return profiled(folder, "--num-inference-steps", 6, "--num-profiled-timesteps", 3, "--ulysses-degree", 2)


@pytest.mark.slow
def test_every_rank_leaves_a_trace_of_the_steps_after_the_first(two_ranks):
    profile, found = two_ranks
    assert (profile.stages, profile.steps, sorted(found)) == (["denoising"], [1, 2, 3], [0, 1])
    for trace in profile.traces:
        name = rf"\d{{8}}T\d{{6}}Z-[0-9a-f]{{6}}-3_steps-global-rank{trace.rank}\.trace\.json\.gz"
        assert re.fullmatch(name, Path(trace.path).name)
        assert ranges(found[trace.rank], "stage: ") == ["denoising"]
        assert ranges(found[trace.rank], "step: ") == ["1", "2", "3"]


def test_blocks_and_collectives_have_their_names(two_ranks):
    for found in two_ranks[1].values():
        assert (
            found["block: transformer.transformer_blocks.0"] == found["block: transformer.single_transformer_blocks.5"]
        )
        assert found["block: transformer.transformer_blocks.0"] >= 3
        assert ranges(found, "collective: ") == ["ulysses all_gather", "ulysses all_to_all"]
        assert found["collective: ulysses all_to_all"] == found["gloo:all_to_all"] >= 3


def test_the_tables_of_the_dump_are_of_what_was_recorded(two_ranks, folder):
    profile, _ = two_ranks
    assert profile.kernels[0].ms >= profile.kernels[-1].ms > 0
    events = complete_events(folder / profile.traces[0].path)
    (thread,) = {event["tid"] for event in events if event["name"] == "stage: denoising"}  # gloo has others
    calls = Counter(event["name"] for event in events if event["tid"] == thread)
    assert {one.name: one.calls for one in profile.kernels}.items() <= calls.items()
    exchanged = [one.ms for one in profile.kernels if one.name == "collective: ulysses all_to_all"]
    assert profile.kinds_ms["communication"] >= exchanged[0] > 0 and profile.kinds_ms["matmul"] > 0
    assert sum(one.share_pct for one in profile.kernels) <= 100


@pytest.mark.slow
def test_all_stages_and_steps_are_recorded_where_that_is_asked_for(tmp_path):
    profile, found = profiled(tmp_path, "--num-inference-steps", 2, "--profile-all-stages")
    assert (profile.stages, profile.steps) == (STAGES, [0, 1])
    assert profile.traces[0].path.endswith("-full_stages-global-rank0.trace.json.gz")
    assert ranges(found[0], "stage: ") == sorted(STAGES)
    assert ranges(found[0], "step: ") == ["0", "1"]
    assert "text_encoder.encoder.layers.0" in ranges(found[0], "block: ")
    refused = difftool("compare-perf", "perf.json", "perf.json", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: perf.json is of a profiled run, whose times hold the profiler's own\n")


@pytest.mark.slow
def test_nsys_is_told_the_same_names_on_every_rank(tmp_path):
    request = ("--tool", "nsys", "--num-inference-steps", 2, "--ulysses-degree", 2)
    path = os.pathsep.join([str(install_nsys(tmp_path)), os.environ["PATH"]])
    done = difftool("profile", *REQUEST[:-3], *request, "--perf-dump-path", "perf.json", cwd=tmp_path, PATH=path)
    assert done.returncode == 0, done.stderr
    profile = read_perf(tmp_path / "perf.json").profile
    assert (profile.tool, profile.stages, profile.steps, profile.traces) == ("nsys", STAGES, [0, 1], [])
    told = json.loads((tmp_path / profile.report).read_text())["ranges"]
    assert len(told) == 2
    for names_of_rank in told:
        opened = Counter(names_of_rank)
        assert all(opened[f"end of {name}"] == opened[name] for name in opened if not name.startswith("end of "))
        assert sorted(ranges(opened, "stage: ")) == sorted(STAGES)
        assert ranges(opened, "step: ") == ["0", "1"]
        assert "transformer.transformer_blocks.0" in ranges(opened, "block: ")
        assert ranges(opened, "collective: ") == ["ulysses all_gather", "ulysses all_to_all"]
    assert f"report: {profile.report}\nopen it with: nsys-ui {profile.report}\n" in done.stderr


def test_a_memory_snapshot_of_a_device_without_a_history_is_refused_before_anything_is_loaded(tmp_path):
    recipe = {
        "model": {"path": "builtin:shapes-image"},
        "sampling": {"prompt": "a red circle"},
        "launch": {"device": "cpu", "threads": torch.get_num_threads()},
        "output": {"dir": str(tmp_path)},
    }
    profile = ProfilePlan(steps=1, all_stages=False, memory_snapshot=True)
    records = open_records(make_plan(load_recipe(recipe), run=RunOptions(profile=profile)))
    kept = Kept(ExitStack())
    with pytest.raises(PlanError, match="this run is on cpu, whose keeps no history"), kept.ends:
        run_plan(records / "plan.json", Events(None, World()), 0.0, World(), kept)
    assert kept.assembled is None

"""`launch.on_oom: fallback`: where memory runs out the run goes on with more of its weights away, and says so."""

import json
import sys
from functools import partial

import pytest
from launch.conftest import STANDIN

from difftool import launch
from difftool.errors import OutOfMemoryError, RecipeError
from difftool.launch.events import Error
from difftool.launch.failure import WorkerReport
from difftool.launch.fallback import next_plan
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.plan import Plan
from difftool.recipe.load import load_recipe

OUT = "a card ran out of memory (denoising, item blue)"
ENCODERS = "stages.text_encoding.offload=after_use"
SHAPES = {"model": "builtin:shapes-image", "launch": {"on_oom": "fallback", "device": "cpu"}}


def plan(folder, *, options=None, **sections):
    sections.setdefault("sampling", {"prompts": [{"prompt": "red", "id": "red"}, {"prompt": "blue", "id": "blue"}]})
    recipe = {**SHAPES, "output": {"name": "{id}"}, **sections}
    return make_plan(load_recipe(recipe), run=options or RunOptions(output_dir=str(folder)))


@pytest.fixture
def run(tmp_path):
    """Runs a plan with a worker that needs its denoiser streamed; what was told, and the records."""

    def run(asked):
        records, told = launch.open_records(asked), []
        worker = (sys.executable, str(STANDIN), "need-streamed-blocks")
        start = partial(launch.run, on_event=lambda event: None, worker=worker)
        try:
            return launch.run_to_the_end(asked, records, start, told=told.append), told, records
        except OutOfMemoryError as error:
            return error, told, records

    return run


def test_the_run_goes_on_and_keeps_what_is_made(run, tmp_path):
    result, told, records = run(plan(tmp_path))
    assert told == [
        f"{OUT}; goes on with {ENCODERS}",
        f"{OUT}; goes on with {ENCODERS}, stages.decoding.offload=after_use",
        f"{OUT}; goes on with {ENCODERS}, stages.decoding.offload=after_use, stages.denoising.offload=layerwise",
    ]
    assert (tmp_path / "red.png").read_bytes() == b"the first one"  # of the first start
    assert (tmp_path / "blue.png").is_file() and [media.path.name for media in result.media] == ["red.png", "blue.png"]


def test_the_change_is_in_the_records_and_the_recipe_makes_the_same_plan_again(run, tmp_path):
    first = plan(tmp_path)
    _, _, records = run(first)
    last = Plan.model_validate_json((records / "plan.json").read_bytes())
    assert last.recipe["stages"]["denoising"]["offload"] == "layerwise"
    assert last.provenance["stages.denoising.offload"] == "launch.on_oom"
    (why,) = [choice.reason for choice in last.choices if choice.key == "stages.denoising.offload"]
    assert why == "launch.on_oom: a card ran out of memory (denoising, item blue)"
    assert last.recipe_sha256 != first.recipe_sha256 and last.workload_sha256 == first.workload_sha256
    again = make_plan(load_recipe(last.recipe), run=RunOptions(output_dir=str(tmp_path)))
    assert (again.stages, again.recipe_sha256) == (last.stages, last.recipe_sha256)
    assert json.loads((records / "todo.json").read_text())["resumed_from"] == records.name


def test_what_is_asked_for_by_name_is_not_changed(run, tmp_path):
    error, told, _ = run(plan(tmp_path, stages={"denoising": {"offload": "after_use"}}))
    assert isinstance(error, OutOfMemoryError) and error.exit_code == 5
    assert len(told) == 2 and not any("denoising.offload" in line for line in told)


def test_without_it_the_run_ends(run, tmp_path):
    error, told, _ = run(plan(tmp_path, launch={"device": "cpu"}))
    assert isinstance(error, OutOfMemoryError) and told == []


def test_the_last_rung_is_the_end(tmp_path):
    every = {role: {"offload": "layerwise"} for role in ("text_encoding", "denoising")}
    every |= {"decoding": {"offload": "after_use"}}
    assert next_plan(plan(tmp_path, stages=every), OutOfMemoryError("out")) is None


GPUS = {"num_gpus": 2, "ulysses": 2}
FLUX = {"path": "black-forest-labs/FLUX.1-dev"}
REST = [  # what the rest of a recipe says, and every rung that is left
    ({"stages": {"text_encoding": {"tp": 2}}, "parallel": GPUS}, ["decoding=after_use", "denoising=layerwise"]),
    ({"model": {**FLUX, "backend": "diffusers"}}, []),
    ({"stages": {"denoising": {"compile": "full"}}}, ["text_encoding=after_use", "decoding=after_use"]),
    (
        {"parallel": {"num_gpus": 2, "hsdp": "all"}},
        ["text_encoding=after_use", "decoding=after_use"],
    ),
]


def out_of_memory(stage):
    error = OutOfMemoryError("out")
    error.__cause__ = WorkerReport(Error(kind="OutOfMemoryError", exit_code=5, message="out", stage=stage))
    return error


def rungs(asked, stage):
    """What each further start does, until the error stands."""
    found = []
    while (more := next_plan(asked, out_of_memory(stage))) is not None:
        changed = [role for role, its in more.stages.items() if its["offload"] != asked.stages[role]["offload"]]
        found += [f"{role}={more.stages[role]['offload']}" for role in changed]
        asked = more
    return found


@pytest.mark.parametrize(("sections", "expected"), REST)
def test_what_the_rest_of_the_recipe_refuses_is_not_tried(tmp_path, sections, expected):
    assert rungs(plan(tmp_path, **sections), "denoising") == expected


def test_a_budget_that_has_all_weights_away_leaves_nothing_to_try(tmp_path):
    asked = plan(tmp_path, memory={"budget": "6000KiB"})
    assert [next_plan(asked, out_of_memory(stage)) for stage in ("denoising", "decoding")] == [None] * 2


def test_a_run_within_a_budget_goes_on_from_what_that_has_sent_away(tmp_path):
    more = next_plan(plan(tmp_path, memory={"budget": "12000KiB"}), out_of_memory("denoising"))
    assert [stage["offload"] for stage in more.stages.values()] == ["after_use", "auto", "layerwise", "after_use"]
    more = next_plan(plan(tmp_path, memory={"budget": "10000KiB"}), out_of_memory("denoising"))
    assert more.stages["denoising"]["offload"] == "layerwise"  # two blocks of it stayed


def test_what_a_budget_refuses_is_not_tried(tmp_path):
    # its encoder fits alone, and not beside what of a streamed denoiser stays
    asked = plan(tmp_path, model="Lightricks/LTX-Video", memory={"budget": "18200MiB"}, output={"name": "{id}"})
    assert next_plan(asked, out_of_memory("denoising")) is None


def test_it_cannot_be_had_where_a_run_goes_on_without_what_failed(tmp_path):
    with pytest.raises(RecipeError, match="launch.on_oom=fallback starts anew where memory runs out"):
        plan(tmp_path, options=RunOptions(output_dir=str(tmp_path), keep_going=True))

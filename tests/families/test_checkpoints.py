"""A tiny checkpoint saved in the standard layout, run as a recipe: planned, loaded and saved as any other."""

import json
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from families.cases import CASES
from families.running import AssembledCase, batch_of, case_named, run_stock
from tiny import difftool

from difftool.engine import Kept, run_plan
from difftool.launch import open_records
from difftool.parallel.world import World
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe

NAMES = [case.name for case in CASES]
FIRST = list({case.family: case.name for case in reversed(CASES)}.values())  # of each family: a launch takes long
SAME_NAME = ("height", "width", "num_frames", "num_inference_steps", "max_sequence_length", "guidance_scale")
SAMPLING = (*SAME_NAME, "guidance_scale_2", "true_cfg_scale", "boundary_ratio", "extra")


def recipe_for(case, checkpoint, folder):
    """The case's own request as a recipe that lives in `folder`, beside its pictures."""
    batch = batch_of(case, num_inference_steps=2)
    values = {key: value for key in SAMPLING if (value := getattr(batch, key)) not in (None, {})}
    for i, picture in enumerate(batch.image):
        picture.image.save(folder / f"input-{i}.png")
    if batch.image:
        values["image"] = [str(folder / f"input-{i}.png") for i in range(len(batch.image))]
    if batch.last_image is not None:
        values["last_image"] = str(folder / "last.png")
        batch.last_image.image.save(values["last_image"])
    if batch.negative_prompt is not None:
        values["negative_prompt"] = batch.negative_prompt[0]
    sampling = {"prompt": batch.prompt[0], "seed": batch.seeds[0], **values}
    return {
        "model": str(checkpoint),
        "stages": {"text_encoding": {"precision": "fp32"}},
        "sampling": sampling,
        "launch": {"device": "cpu", "threads": 1},
        "output": {"dir": str(folder / "out"), "name": "made", "format": "npz"},
    }


def expected_pixels(case, checkpoint):
    """What diffusers makes of the same folder."""
    torch.set_num_threads(1)
    built = type(case.build()).from_pretrained(checkpoint, dtype=torch.float32, **case.given(checkpoint))
    stock = case.reference(built)
    stock.set_progress_bar_config(disable=True)
    batch = batch_of(case, num_inference_steps=2)
    return run_stock(AssembledCase(case, stock, None, None, None), batch)[1][0].numpy()


class Quiet:
    """Progress that nobody hears; the first error ends the run."""

    stage = item = None

    def __call__(self, event, **values):
        pass

    def attempt(self, make, *, keep_going):
        make()


@contextmanager
def environment_kept():
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_checkpoint_runs_from_a_recipe_and_equals_diffusers(name, saved, tmp_path):
    case, checkpoint = case_named(name), saved(name)
    plan = make_plan(load_recipe(recipe_for(case, checkpoint, tmp_path)), run=RunOptions())
    assert (plan.model.family, plan.model.pipeline_class) == (case.family, case.pipeline_class)
    records = open_records(plan)
    with environment_kept(), ExitStack() as ends:
        run_plan(records / "plan.json", Quiet(), 0.0, World(), Kept(ends))
    with np.load(tmp_path / "out" / "made.npz") as made:
        pixels = made["pixels"]
    expected = expected_pixels(case, checkpoint)
    assert pixels.shape == expected.shape
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=case.tolerance)
    dump = json.loads((records / "perf.json").read_text())
    assert dump["status"] == "ok" and len(dump["denoise_steps_ms"]) == plan.items[0].sampling["num_inference_steps"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST)
def test_a_saved_checkpoint_runs_on_the_command_line(name, saved, tmp_path):
    case, checkpoint = case_named(name), saved(name)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps(recipe_for(case, checkpoint, tmp_path)))
    done = difftool("generate", recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out" / "made.npz") as made:
        np.testing.assert_allclose(made["pixels"], expected_pixels(case, checkpoint), rtol=0, atol=case.tolerance)

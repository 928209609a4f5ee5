"""The time shift for a length is that of the pipelines of diffusers, to the bit."""

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from difftool.components.schedulers import fresh_scheduler, shift_by_length
from difftool.errors import RecipeError
from difftool.parallel.mesh import Mesh
from difftool.parallel.world import World
from difftool.pipeline.assemble import assemble
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.platforms.base import current
from difftool.recipe.load import load_recipe

OTHER = {"base_image_seq_len": 1024, "max_image_seq_len": 9000, "base_shift": 0.95, "max_shift": 2.05}


@pytest.mark.parametrize("tokens", [16, 256, 1517, 4096, 40_000])
def test_a_length_has_the_shift_that_diffusers_gives_it(tokens):
    assert shift_by_length({}, tokens) == calculate_shift(tokens)
    assert shift_by_length({}, tokens, max_shift=1.16) == calculate_shift(tokens, max_shift=1.16)
    assert shift_by_length(OTHER, tokens, max_shift=1.16) == calculate_shift(tokens, *OTHER.values())


def test_a_setting_that_a_scheduler_has_not_is_refused_with_the_nearest():
    loaded = FlowMatchEulerDiscreteScheduler()
    assert fresh_scheduler(loaded, {"config": {"shift": 3.0}}).config.shift == 3.0
    message = "config.shiftt: FlowMatchEulerDiscreteScheduler has no such setting, did you mean 'shift'?"
    with pytest.raises(RecipeError) as caught:
        fresh_scheduler(loaded, {"config": {"shiftt": 3.0}})
    assert caught.value.message == f"sampling.scheduler.{message}"
    with pytest.raises(RecipeError, match="has no such setting; it has num_train_timesteps, beta_start"):
        fresh_scheduler(UniPCMultistepScheduler(), {"config": {"xyz": 1}})


@pytest.mark.parametrize("backend", ["native", "diffusers"])
def test_it_is_refused_before_weights_load(backend):
    recipe = {"model": {"path": "builtin:shapes-image", "backend": backend}}
    recipe["sampling"] = {"prompt": "x", "scheduler": {"config": {"shiftt": 3}}}
    plan, told = make_plan(load_recipe(recipe), run=RunOptions()), []
    with pytest.raises(RecipeError, match="did you mean 'shift'"):
        assemble(plan, current("cpu"), lambda event, **values: told.append(event), Mesh({}, World()))
    assert "component_loaded" not in told

"""The recipes of the arms of a race: points of a sweep, and diffusers' own pipeline."""

import pytest

from difftool.errors import RecipeError
from difftool.planning.arms import (
    ArmSpec,
    differs,
    diffusers_arm,
    parse_sweep,
    same_request,
    sweep_arms,
    sweep_points,
    with_overrides,
)
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import Override, load_recipe
from difftool.recipe.schema import Sweep

PROMPT = Override("sampling.prompt", "a red circle", "-p")
BASE = ArmSpec("base", "builtin:shapes-image", (PROMPT,))


def plan(spec):
    return make_plan(load_recipe(spec.recipe, spec.overrides), run=RunOptions())


def named(**sections):
    return [
        (spec.name, {o.key: o.value for o in spec.overrides[1:]}) for spec in sweep_arms(BASE, Sweep(**sections), "x")
    ]


def test_every_combination_is_an_arm():
    assert named(matrix={"sampling.seed": [7, 8], "launch.threads": [1]}) == [
        ("sampling.seed=7, launch.threads=1", {"sampling.seed": 7, "launch.threads": 1}),
        ("sampling.seed=8, launch.threads=1", {"sampling.seed": 8, "launch.threads": 1}),
    ]


@pytest.mark.parametrize("entry", [{"a.b": 2}, {"a": {"b": 2}}], ids=["dotted", "nested"])
def test_points_that_are_excluded_are_left_out(entry):
    assert named(matrix={"a.b": [1, 2], "c": [3, 4]}, exclude=[{"c": 4, "a.b": 1}, entry]) == [
        ("a.b=1, c=3", {"a.b": 1, "c": 3})
    ]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"matrix": {"a": [1, 2], "b": [1, 2]}, "max_points": 3}, "sweep: 4 points, more than max_points=3"),
        ({"matrix": {"a": [1]}, "exclude": [{"a": 5}]}, "sweep.exclude: a=5 is no point of the matrix"),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(sections, message):
    with pytest.raises(RecipeError) as caught:
        named(**sections)
    assert caught.value.message == message


def test_excluded_points_do_not_count_against_the_most():
    assert len(named(matrix={"a": [1, 2], "b": [1, 2]}, exclude=[{"a": 1, "b": 1}], max_points=3)) == 3
    assert sweep_points({"a": [1, 2]}, [{"b": 1}]) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("sampling.seed=7,8", ("sampling.seed", [7, 8])),
        ("stages.decoding.tiling=none, on", ("stages.decoding.tiling", ["none", "on"])),
        (
            "stages.decoding.tiling=none,{name: on, size: 32}",
            ("stages.decoding.tiling", ["none", {"name": "on", "size": 32}]),
        ),
        ("sampling.prompt=7,yes", ("sampling.prompt", ["7", "yes"])),
    ],
)
def test_the_values_of_a_sweep_are_typed_by_the_schema(text, found):
    assert parse_sweep(text) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sampling.seed", "--sweep sampling.seed: write key=value,value, for example sampling.seed=7,8"),
        (
            "sampling.sed=1,2",
            "--sweep sampling.sed=1,2: sampling.sed: unknown recipe key, did you mean 'sampling.seed'?",
        ),
    ],
)
def test_a_sweep_of_nothing_known_is_refused(text, message):
    with pytest.raises(RecipeError) as caught:
        parse_sweep(text)
    assert caught.value.message == message


def test_diffusers_own_pipeline_is_asked_for_the_same():
    base = plan(BASE)
    arm = diffusers_arm(BASE, base)
    other = plan(arm)
    assert (arm.name, other.model.backend, base.model.backend) == ("diffusers", "diffusers", "native")
    assert same_request(base, other) and differs(base, other)
    assert (other.threads, other.stages) == (base.threads, base.stages)
    for key in ("height", "width", "num_inference_steps", "true_cfg_scale", "max_sequence_length", "negative_prompt"):
        assert other.items[0].sampling[key] == base.items[0].sampling[key], key


def test_another_request_is_not_the_same():
    base = plan(BASE)
    for key, value in (("sampling.num_inference_steps", 7), ("sampling.seed", 8), ("model.lora", ["builtin:night"])):
        other = plan(with_overrides(diffusers_arm(BASE, base), "other", [Override(key, value, "x")]))
        assert not same_request(base, other), key


def test_diffusers_runs_on_one_device_what_takes_many():
    many = with_overrides(BASE, "base", [Override("parallel.num_gpus", 2, "x"), Override("parallel.cfg", 2, "x")])
    assert plan(many).degrees.num_gpus == 2 and plan(diffusers_arm(many, plan(many))).degrees.num_gpus == 1


def test_what_diffusers_runs_already_is_no_race():
    own = with_overrides(BASE, "base", [Override("model.backend", "diffusers", "x")])
    with pytest.raises(RecipeError, match="--vs diffusers: diffusers runs this recipe already"):
        diffusers_arm(own, plan(own))


def test_repeats_and_outputs_make_no_other_run():
    base = plan(BASE)
    assert not differs(
        base, plan(with_overrides(BASE, "x", [Override("perf.repeats", 5, "x"), Override("name", "y", "x")]))
    )
    assert differs(base, plan(with_overrides(BASE, "x", [Override("launch.threads", base.threads + 1, "x")])))

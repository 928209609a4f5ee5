"""The items of a batch: ids, own values, several outputs, and a seed for each that is written down."""

import pytest

from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.render import render_resolved
from difftool.recipe.load import load_recipe

SHAPES = "builtin:shapes-image"


def plan(recorded=None, **sampling):
    loaded = load_recipe({"model": SHAPES, "sampling": sampling})
    return make_plan(loaded, run=RunOptions(recorded=recorded))


def seeds(made):
    return [item.seed for item in made.items]


def test_seeds_count_the_outputs_before_an_item():
    prompts = [{"prompt": "a", "num_outputs_per_prompt": 3}, {"prompt": "b"}, {"prompt": "c"}]
    made = plan(prompts=prompts, seed=10)
    assert [(item.index, item.output, item.seed) for item in made.items] == [
        (0, 0, 10),
        (0, 1, 11),
        (0, 2, 12),
        (1, 0, 13),
        (2, 0, 14),
    ]


def test_an_own_seed_counts_over_its_own_outputs_and_leaves_the_others_alone():
    prompts = [{"prompt": "a"}, {"prompt": "b", "seed": 100, "num_outputs_per_prompt": 2}, {"prompt": "c"}]
    assert seeds(plan(prompts=prompts, seed=10)) == [10, 100, 101, 13]


def test_every_item_has_its_own_values_over_the_shared_ones():
    prompts = [{"prompt": "a", "id": "tall", "height": 96}, {"prompt": "b", "negative_prompt": "grey"}]
    first, second = plan(prompts=prompts, num_inference_steps=3).items
    assert (first.id, first.sampling["height"], first.sampling["num_inference_steps"]) == ("tall", 96, 3)
    assert (second.id, second.sampling["height"], second.sampling["negative_prompt"]) == ("1", 64, "grey")


@pytest.mark.parametrize("source", ["list", "file"])
def test_a_random_seed_of_a_prompt_is_drawn_and_recorded(source, tmp_path):
    prompts = [{"prompt": "a", "seed": "random"}, {"prompt": "b"}]
    if source == "file":
        (tmp_path / "p.jsonl").write_text('{"prompt": "a", "seed": "random"}\n{"prompt": "b"}\n')
        prompts = {"file": str(tmp_path / "p.jsonl")}
    made = plan(prompts=prompts)
    assert made.recipe["sampling"]["prompts"] == [{"prompt": "a", "seed": seeds(made)[0]}, {"prompt": "b"}]
    (tmp_path / "again.yaml").write_text(render_resolved(made))
    assert make_plan(load_recipe(tmp_path / "again.yaml"), run=RunOptions()).items == made.items


def test_a_run_that_is_taken_up_keeps_the_seeds_it_drew():
    asked = {"prompts": [{"prompt": "a", "seed": "random"}, {"prompt": "b"}], "seed": "random"}
    first = plan(**asked)
    assert seeds(plan(**asked)) != seeds(first)
    assert seeds(plan(recorded=first, **asked)) == seeds(first)


def test_a_seed_that_is_given_is_not_the_recorded_one():
    assert seeds(plan(recorded=plan(prompt="a", seed=1), prompt="a", seed=2)) == [2]

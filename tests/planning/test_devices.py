"""`launch.devices`: one CUDA device for each rank of the machine, known and told before anything starts."""

import pytest

from difftool.errors import RecipeError
from difftool.planning.loading import loading
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.render import render_plan
from difftool.recipe.load import load_recipe

TWO_NODES = {"nnodes": 2, "rdzv_endpoint": "node0:29400"}


def plan(parallel=None, **launch):
    content = {"model": "builtin:shapes-image", "parallel": parallel or {}, "launch": launch}
    return make_plan(load_recipe({**content, "sampling": {"prompt": "x", "seed": 1}}), run=RunOptions())


def refusals(parallel=None, **launch):
    with pytest.raises(RecipeError) as caught:
        plan(parallel, **launch)
    assert {problem.key for problem in caught.value.problems} == {"launch.devices"}
    return [problem.message for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("parallel", "launch", "ranks"),
    [
        ({}, {"devices": [4, 5, 6, 7]}, 4),
        ({}, {"devices": [7]}, 1),
        ({"num_gpus": 2}, {"devices": [4, 5], "device": "cuda"}, 2),
        ({"dp": 2}, {"devices": [4, 5], **TWO_NODES}, 4),
    ],
    ids=str,
)
def test_each_device_named_is_a_rank_of_this_machine(parallel, launch, ranks):
    made = plan(parallel, **launch)
    assert (made.degrees.num_gpus, made.devices) == (ranks, tuple(launch["devices"]))
    again = make_plan(load_recipe(made.recipe), run=RunOptions())
    assert (again.degrees, again.device, again.devices) == (made.degrees, made.device, made.devices)


def test_indices_are_those_of_cuda_and_the_plan_says_so():
    made = plan(devices=[4, 5])
    page = render_plan(made)
    assert made.device == "cuda" and "\ndevice    cuda (4, 5), " in page
    assert (
        "  launch.device                      cuda                                  launch.devices are CUDA's\n" in page
    )


def test_without_indices_the_device_stays_open():
    assert (plan().device, plan().devices, plan().degrees.num_gpus) == ("auto", None, 1)


def test_other_devices_are_no_other_picture_but_need_another_worker():
    one, other = plan(devices=[4]), plan(devices=[5])
    assert one.recipe_sha256 == other.recipe_sha256
    assert loading(one) != loading(other)


@pytest.mark.parametrize(
    ("num_gpus", "launch", "where"),
    [(4, {}, "this machine"), (1, {}, "this machine"), (2, TWO_NODES, "each node")],
    ids=str,
)
def test_another_number_of_devices_than_of_ranks_is_refused(num_gpus, launch, where):
    assert refusals({"num_gpus": num_gpus}, devices=[4, 5], **launch) == [
        f"launch.devices=[4, 5]: num_gpus={num_gpus}, and 2 devices on {where}; name one for each rank, or leave "
        "num_gpus auto"
    ]


def test_devices_that_ranks_cannot_have_are_refused():
    assert refusals(devices=[4, 4]) == ["launch.devices=[4, 4] names a device twice, and each rank has one of its own"]
    assert refusals(devices=[4], device="cpu") == [
        "launch.devices=[4] are CUDA's, and launch.device=cpu; leave one of them out"
    ]

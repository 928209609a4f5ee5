"""How many machines a run takes, and what does not go with them, is known before anything starts."""

import io

import pytest

from difftool.errors import RecipeError
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.render import render_plan
from difftool.recipe.load import load_recipe


def plan(*, keep_going=False, parallel=None, sampling=None, **launch):
    content = {"model": "builtin:shapes-image", "parallel": parallel or {}, "launch": launch}
    given = {"prompt": ["a red circle", "a blue star"], "seed": 1}
    loaded = load_recipe({**content, "sampling": sampling or given})
    return make_plan(loaded, run=RunOptions(keep_going=keep_going))


def refusal(**asked):
    with pytest.raises(RecipeError) as caught:
        plan(**asked)
    assert caught.value.exit_code == 2
    return str(caught.value)


TWO = {"nnodes": 2, "rdzv_endpoint": "node0:29400"}


@pytest.mark.parametrize(
    ("endpoint", "place"),
    [("node0:29400", ("node0", 29400)), ("10.0.0.1:1", ("10.0.0.1", 1)), ("[fd00::1]:65535", ("fd00::1", 65535))],
)
def test_nodes_meet_at_a_host_and_port(endpoint, place):
    nodes = plan(parallel={"dp": 4}, nnodes=2, node_rank=1, rdzv_endpoint=endpoint).nodes
    assert (nodes.count, nodes.rank, (nodes.host, nodes.port), nodes.endpoint) == (2, 1, place, endpoint)


def test_the_printed_plan_says_where_the_nodes_meet():
    shown = render_plan(plan(parallel={"dp": 2}, **TWO))
    assert "2 = dp 2 x cfg 1 x ring 1 x ulysses 1 x tp 1, on 2 nodes that meet at node0:29400\n" in shown


def test_one_machine_has_no_nodes():
    assert plan().nodes is None


@pytest.mark.parametrize("endpoint", ["node0", "node0:", ":29400", "node0:0", "node0:65536", "fd00::1:29400", "a b:1"])
def test_an_endpoint_is_host_and_port(endpoint):
    assert f"rdzv_endpoint={endpoint!r}: use host:port, for example node0:29400" in refusal(
        parallel={"dp": 2}, nnodes=2, rdzv_endpoint=endpoint
    )


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"parallel": {"dp": 2}, "nnodes": 2}, "nnodes=2 needs rdzv_endpoint: host:port, an address of node 0"),
        ({"parallel": {"dp": 2}, **TWO, "node_rank": 2}, "node_rank=2 with nnodes=2; ranks count from 0"),
        (
            {"parallel": {"dp": 3}, **TWO},
            "launch.nnodes=2 does not divide num_gpus=3, which counts those of all nodes; "
            "use num_gpus=2 or num_gpus=4, or nnodes: 1, 3",
        ),
        (
            TWO,
            "launch.nnodes=2 does not divide num_gpus=1, which counts those of all nodes; use num_gpus=2, or nnodes: 1",
        ),
        (
            {"rdzv_endpoint": "node0:1"},
            "launch.rdzv_endpoint is where several nodes meet; give nnodes too, or leave it",
        ),
        (
            {"parallel": {"dp": 2}, "launcher": "direct"},
            "launch.launcher=direct starts one rank, not 2; use auto or torchrun",
        ),
        (
            {"parallel": {"dp": 2}, **TWO, "sampling": {"prompts": {"file": "-"}}},
            "sampling.prompts.file: each node would read its own standard input; give a file",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_way_out(asked, words, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a red circle\n")))
    assert words in refusal(**asked)


@pytest.mark.parametrize("parallel", [{"num_gpus": 2, "ulysses": 2}, {"num_gpus": 4, "dp": 2, "ring": 2}])
def test_going_on_after_a_failure_needs_replicas_of_one_rank(parallel):
    ranks = parallel["num_gpus"]
    assert (
        "--keep-going: an item that fails in one rank leaves those waiting that make it together; "
        f"use dp={ranks}, a whole replica on each rank, or --fail-fast"
    ) in refusal(keep_going=True, parallel=parallel)
    assert plan(keep_going=True, parallel={"dp": ranks}).keep_going

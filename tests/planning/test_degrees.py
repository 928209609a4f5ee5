"""Degrees multiply to num_gpus, or the error says which value would make them."""

import pytest

from difftool.facts import AXES
from difftool.planning.degrees import Asked, solve
from difftool.planning.plan import Degrees


def ask(**changes):
    values = {
        "num_gpus": "auto",
        "dp": 1,
        "cfg": "auto",
        "sp": "auto",
        "ulysses": "auto",
        "ring": "auto",
        "tp": 1,
        "hsdp": "none",
        "heads": 40,
        "branches": 2,
        "axes": AXES,
    }
    return solve(Asked(**{**values, **changes}))


def degrees(**changes):
    solved = ask(**changes)
    assert isinstance(solved, Degrees), solved
    return {axis: getattr(solved, axis) for axis in ("dp", "cfg", "ulysses", "ring", "tp") if getattr(solved, axis) > 1}


def messages(**changes):
    problems = ask(**changes)
    assert isinstance(problems, list), problems
    return [problem.message for problem in problems]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, {}),
        ({"num_gpus": 1}, {}),
        ({"num_gpus": 8}, {"cfg": 2, "ulysses": 4}),
        ({"num_gpus": 8, "branches": 1}, {"ulysses": 8}),
        ({"num_gpus": 6, "heads": 40}, {"cfg": 2, "ring": 3}),
        ({"num_gpus": 8, "heads": 30}, {"cfg": 2, "ulysses": 2, "ring": 2}),
        ({"num_gpus": 3, "heads": 24}, {"ulysses": 3}),
        ({"num_gpus": 8, "tp": 2}, {"cfg": 2, "ulysses": 2, "tp": 2}),
        ({"num_gpus": 8, "dp": 4}, {"dp": 4, "cfg": 2}),
        ({"num_gpus": 8, "ring": 2}, {"cfg": 2, "ulysses": 2, "ring": 2}),
        ({"num_gpus": 8, "ulysses": 8}, {"ulysses": 8}),
        ({"num_gpus": 4, "cfg": 1}, {"ulysses": 4}),
        ({"sp": 4}, {"ulysses": 4}),
        ({"ulysses": 2, "ring": 2}, {"ulysses": 2, "ring": 2}),
        ({"num_gpus": 8, "hsdp": "all"}, {"dp": 8}),
        ({"num_gpus": 8, "hsdp": "all", "ulysses": 4}, {"cfg": 2, "ulysses": 4}),
    ],
)
def test_auto_degrees_are_solved(request_, expected):
    assert degrees(**request_) == expected


def test_the_product_is_explained_with_a_value_that_works():
    assert messages(num_gpus=8, cfg=2, ulysses=3, heads=24) == [
        "parallel: num_gpus=8 but cfg·ulysses = 2·3 = 6; free one of them (auto), or use ulysses=4"
    ]
    assert messages(num_gpus=4, tp=8, heads=None) == [
        "parallel: num_gpus=4 but tp = 8; free one of them (auto), or use tp=4"
    ]
    assert messages(num_gpus=5, dp=2, cfg=2) == [
        "parallel: num_gpus=5 but dp·cfg = 2·2 = 4; free one of them (auto), or use num_gpus=4"
    ]


def test_heads_must_divide():
    assert messages(num_gpus=6, ulysses=3) == [
        "parallel.ulysses=3 does not divide 40 attention heads; valid: 1, 2, 4, 5, 8, 10, 20, 40"
    ]
    assert messages(tp=3) == ["parallel.tp=3 does not divide 40 attention heads; valid: 1, 2, 4, 5, 8, 10, 20, 40"]


def test_cfg_needs_as_many_branches():
    assert messages(num_gpus=2, cfg=2, branches=1) == [
        "parallel.cfg=2, but this request runs one guidance branch; use cfg=1, or give a negative prompt with a "
        "guidance that uses it"
    ]
    assert messages(num_gpus=4, cfg=4) == ["parallel.cfg=4, but this request runs 2 guidance branches; use cfg=2"]
    assert degrees(num_gpus=3, cfg=3, branches=3) == {"cfg": 3}


def test_tensor_and_ulysses_ranks_share_the_heads():
    assert messages(num_gpus=16, ulysses=8, tp=2, heads=24) == [
        "parallel.ulysses=8 and tp=2 share 24 attention heads among 16; use ulysses=1, 2, 3, 4, 6 or 12"
    ]
    assert degrees(num_gpus=16, tp=2, heads=24, cfg=1) == {"ulysses": 4, "ring": 2, "tp": 2}


def test_an_axis_that_the_model_cannot_be_split_along_is_refused():
    problems = messages(num_gpus=4, ring=2, ulysses=2, axes=("dp", "cfg"))
    assert problems == [
        "parallel.ring=2: this model is split along dp, cfg alone; use ring=1",
        "parallel.ulysses=2: this model is split along dp, cfg alone; use ulysses=1",
    ]
    assert messages(num_gpus=4, axes=("dp",)) == [
        "parallel: num_gpus=4, and this model is split along dp alone; use dp=4, a replica on each rank"
    ]
    assert messages(num_gpus=3, axes=("dp", "cfg"), branches=2)[0].endswith("use dp=3, a replica on each rank")


def test_sp_is_the_product_of_ulysses_and_ring():
    assert messages(sp=8, ulysses=2, ring=2) == ["parallel.sp=8 but ulysses·ring = 2·2 = 4; free one of them (auto)"]

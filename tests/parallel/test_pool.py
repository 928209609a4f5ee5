"""A pool of ranks answers, survives what fails in it, and starts again after what it cannot survive."""

import pytest
from launch.test_run import gone

from difftool.errors import Stalled, WorkerCrashed
from difftool.launch.pool import RankFailed


def test_every_rank_answers_in_order(ranks):
    assert [answer[:2] for answer in ranks.run("parallel.bodies:place")] == [[0, 4], [1, 4], [2, 4], [3, 4]]
    assert ranks.run("parallel.bodies:total", value=10) == [46.0] * 4


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_smaller_world_has_a_group_of_its_own(ranks, world):
    assert ranks.run("parallel.bodies:total", world=world, value=1) == [float(sum(range(1, world + 1)))] * world


def test_a_failure_names_its_rank_and_the_ranks_live_on(ranks):
    before = ranks.run("parallel.bodies:place")
    with pytest.raises(RankFailed, match="rank 2: ValueError: the rope broke") as caught:
        ranks.run("parallel.bodies:fail", rank=2)
    assert (caught.value.rank, caught.value.kind) == (2, "ValueError")
    assert "in fail" in caught.value.message
    assert ranks.run("parallel.bodies:place") == before


def test_what_json_cannot_hold_is_no_result(ranks):
    with pytest.raises(RankFailed, match="Tensor is not JSON serializable"):
        ranks.run("parallel.bodies:give_a_tensor")


def test_an_unknown_function_is_said(ranks):
    with pytest.raises(RankFailed, match="has no attribute 'nothing'"):
        ranks.run("parallel.bodies:nothing", world=1)


def test_arguments_may_be_longer_than_a_pipe_holds(ranks):
    assert ranks.run("parallel.bodies:length", text="x" * 1_000_000) == [1_000_000] * 4


def test_a_hundred_tasks_run_in_the_same_processes(ranks):
    pids = [answer[2] for answer in ranks.run("parallel.bodies:place")]
    for value in range(100):
        assert ranks.run("parallel.bodies:total", world=2, value=value) == [2.0 * value + 1] * 2
    assert [answer[2] for answer in ranks.run("parallel.bodies:place")] == pids


def test_a_rank_that_dies_is_told_and_the_next_task_starts_new_ones(ranks):
    pids = [answer[2] for answer in ranks.run("parallel.bodies:place")]
    with pytest.raises(WorkerCrashed, match="rank 1 exited with status 3"):
        ranks.run("parallel.bodies:crash", rank=1)
    assert all(map(gone, pids))
    assert ranks.run("parallel.bodies:total", value=0) == [6.0] * 4


@pytest.mark.slow
def test_a_hanging_rank_is_ended_with_its_stack(ranks):
    ranks.run("parallel.bodies:place")
    with pytest.raises(Stalled, match="no answer from rank 3 in 5 s") as caught:
        ranks.run("parallel.bodies:hang", rank=3, timeout_s=5.0)
    assert "in hang" in caught.value.message
    assert ranks.run("parallel.bodies:total", value=0) == [6.0] * 4


@pytest.mark.parametrize("world", [1, 3])
def test_what_ranks_hand_in_reaches_all_whatever_its_length(ranks, world):
    assert ranks.run("parallel.bodies:gathered", world=world) == [["", "word", "wordword"][:world]] * world

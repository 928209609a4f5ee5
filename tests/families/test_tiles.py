"""Tiles that are dealt to the ranks of a replica: the pixels of one rank in tiles, and each tile decoded once."""

from math import prod

import pytest
from families.cases import CASES
from families.decoding import FRAMES, TILE
from families.running import assemble_case
from pytest import mark, param

from difftool.parallel.tiles import DEALT, deal

BODY = "families.decoding:compare"


def every_class():
    """With 2 ranks the first case of every VAE class; other ranks and cases are slow."""
    seen = set()
    for case in CASES:
        for world in (2, 4):
            slow = case.family in seen
            seen.add(case.family)
            yield param(case.name, world, id=f"{case.name}-{world}", marks=mark.slow if slow else ())


@pytest.mark.parametrize(("case", "world"), list(every_class()))
def test_dealt_tiles_make_the_pixels_of_one_rank_in_tiles(ranks, case, world):
    answers = ranks.run(BODY, world=world, case=case)
    alone, owned = answers[0]["alone"], [answer["own"] for answer in answers]
    assert all(answer["equal"] for answer in answers)
    assert all(answer["undone"] for answer in answers)
    assert all(answer["untiled"] > 0 for answer in answers), "it was no tiled decode"
    assert sorted(call for own in owned for call in own) == sorted(alone)
    work, largest = [sum(map(prod, own)) for own in owned], FRAMES * max(map(prod, alone))
    assert max(work) - min(work) <= largest
    assert all(answer["traffic"] == {"all_reduce": 1, "all_gather": 1} for answer in answers)


def test_every_class_of_the_families_is_dealt():
    assert {type(assemble_case(case.name).components.vae).__name__ for case in CASES} == set(DEALT)


def test_the_slices_of_a_batch_are_dealt_too(ranks):
    case = next(case.name for case in CASES if case.batches)
    for answer in ranks.run(BODY, world=2, case=case, batch=2):
        assert answer["equal"] and len(answer["own"]) == len(answer["alone"]) / 2


FIRST = sorted({case.family: case.name for case in reversed(CASES)}.values())


@pytest.mark.parametrize("case", FIRST)
def test_latents_of_one_tile_are_decoded_by_every_rank(ranks, case):
    for answer in ranks.run(BODY, world=2, case=case, frames=1, sides=[TILE, TILE]):
        assert answer["equal"] and answer["own"] == answer["alone"] and answer["traffic"] == {}


def test_more_ranks_than_tiles_leave_some_without(ranks):
    answers = ranks.run(BODY, world=4, case=FIRST[0], sides=[3, 6])
    assert [len(answer["own"]) for answer in answers] == [1, 1, 0, 0]
    assert all(answer["equal"] for answer in answers)


def test_the_largest_tiles_are_dealt_first_each_to_the_rank_that_has_least():
    assert deal([4, 4, 2], 4) == [0, 1, 2]
    assert deal([2, 5, 3, 3, 1], 2) == [0, 0, 1, 1, 1]

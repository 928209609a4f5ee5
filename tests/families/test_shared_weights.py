"""Ranks that share a denoiser's weights make what one rank makes of them, bit for bit, and hold a part each."""

import pytest
from families.running import requests, split_along
from pytest import mark, param

BODY = "families.shared_weights"
SHARING = split_along("ulysses")  # a plan that deals tokens out names the blocks
ALONE, FOUR = {"dp": 2}, {"dp": 4}
SPLIT = {"ulysses": 2, "dp": 2}
MODES = {
    "two ranks": (ALONE, 2, "4 steps", "float32"),
    "bf16": (ALONE, 2, "4 steps", "bfloat16"),
    "three ranks": ({"dp": 3}, 3, "4 steps", "float32"),
    "two copies": (FOUR, 2, "4 steps", "float32"),
    "guided, a rank a branch": ({"cfg": 2, "ulysses": 2}, 4, "guided", "float32"),
    "split tokens": (SPLIT, 4, "4 steps", "float32"),
    "split tokens, two copies": (SPLIT, 2, "4 steps", "float32"),
    "ring": ({"ring": 2}, 2, "4 steps", "float32"),
}
FAST = ("two ranks", "bf16", "guided, a rank a branch", "split tokens, two copies")


def every_mode():
    """Those that mean something to a case. All but the first case of a family in the fast ones are slow."""
    seen = set()
    for case in SHARING:
        for mode, values in MODES.items():
            if values[2] in requests(case):
                first = mode in FAST and (case.family, mode) not in seen
                seen.add((case.family, mode))
                yield param(case.name, *values, id=f"{case.name}-{mode}", marks=() if first else mark.slow)


@pytest.mark.parametrize(("case", "degrees", "sharing", "request_name", "dtype"), list(every_mode()))
def test_shared_weights_make_the_latents_of_whole_ones(ranks, saved, case, degrees, sharing, request_name, dtype):
    world = size(degrees)
    values = {"case": case, "folder": str(saved(case)), "degrees": degrees, "sharing": sharing}
    answers = ranks.run(f"{BODY}:compare", world=world, request=request_name, dtype=dtype, **values)
    for answer in answers:
        assert answer["equal"], answer["difference"]
        assert answer["dtypes"], "a precision changed"
        assert answer["sent"] == answer["predicted"]
        assert answer["allocated"] <= 1.15 * answer["whole"] / sharing
    copies = world // sharing
    assert sum(answer["own"] for answer in answers) == copies * answers[0]["whole"]


@pytest.mark.parametrize("case", sorted({case.family: case.name for case in reversed(SHARING)}.values()))
def test_every_block_is_gathered_once_in_every_forward(ranks, saved, case):
    values = {"case": case, "folder": str(saved(case)), "degrees": ALONE, "sharing": 2}
    for answer in ranks.run(f"{BODY}:compare", world=2, **values):
        calls, sent = answer["traffic"]["hsdp"]
        assert calls == {"all_gather": answer["forwards"] * answer["groups"][0]}
        assert sent["all_gather"] >= answer["forwards"] * answer["own"] // len(answer["groups"])
        assert answer["blocks"] == 1, "more than one was whole at a time"


def test_a_lora_is_merged_into_shared_weights_and_taken_out_as_into_whole_ones(ranks, saved, tmp_path):
    values = {"case": "flux1-dev", "folder": str(saved("flux1-dev")), "scratch": str(tmp_path)}
    for answer in ranks.run(f"{BODY}:merge", world=3, **values):
        assert answer == {"changed": True, "merged": True, "restored": True}


def size(degrees):
    total = 1
    for degree in degrees.values():
        total *= degree
    return total

"""Step masks: near the ratio that a preset aims at whatever the number of steps, spread evenly, or cache-dit's own."""

from itertools import groupby

import cache_dit
import pytest

from difftool.planning.step_masks import RATIOS, step_mask

# those of cache-dit 1.5.3, slow, medium, fast, ultra
GOLDEN = {
    8: "11111011 11110101 11101001 11001001",
    9: "111110111 111110101 111101001 111001001",
    28: "1111111101110011100110010001 1111110110001100011000110001 "
    "1111110100010000100000100001 1111001000001000000100000001",
    50: "11111111111111111111110011111000111110001110001101 11111111111111110011100000111000001110000011100001 "
    "11111111111001100000110000000110000000001100000001 11111110001100000000011000000000001100000000000001",
}


def mask(preset, steps, *, warmup=4, compat="none"):
    scm = {"preset": preset, "compute_bins": (), "cache_bins": (), "compat": compat}
    return step_mask(scm, steps, warmup=warmup)


@pytest.mark.parametrize("preset", RATIOS)
def test_presets_come_as_near_to_their_ratio_as_whole_steps_can(preset):
    for steps in range(8, 101):
        found = mask(preset, steps)
        assert len(found) == steps
        assert abs(found.count("1") - RATIOS[preset] * steps) <= 0.5, (steps, found)


@pytest.mark.parametrize("preset", RATIOS)
def test_the_first_and_the_last_steps_are_computed_and_cached_runs_are_as_even_as_can_be(preset):
    for steps in range(8, 101):
        found = mask(preset, steps)
        first = len(found) - len(found.lstrip("1"))
        assert found.endswith("1") and first >= min(4, found.count("1") // 2)
        # what is between computed steps after the first ones differs by a step at most
        gaps = [len(run) for run in found[first:].split("1")[:-1]]
        assert max(gaps) - min(gaps) <= 1, (steps, found)


def test_a_longer_warm_up_is_taken_from_the_same_budget():
    assert mask("medium", 16, warmup=1) == "1010101010101001"
    assert mask("medium", 16, warmup=100) == "1111001001001001"


def test_masks_of_cache_dit_are_its_own():
    for steps, masks in GOLDEN.items():
        assert [mask(preset, steps, compat="cache-dit") for preset in RATIOS] == masks.split()


def test_at_every_number_of_steps():
    for steps in range(8, 201):
        for preset in RATIOS:
            theirs = cache_dit.steps_mask(total_steps=steps, mask_policy=preset)
            assert mask(preset, steps, compat="cache-dit") == "".join(map(str, theirs)), (preset, steps)


def test_bins_are_taken_as_they_are():
    scm = {"preset": "none", "compute_bins": (8, 3, 3, 2, 2), "cache_bins": (1, 2, 2, 2, 3), "compat": "none"}
    found = step_mask(scm, 28, warmup=4)
    assert found == "1111111101110011100110011000"
    assert [len(list(run)) for _, run in groupby(found)] == [8, 1, 3, 2, 3, 2, 2, 2, 2, 3]


def test_without_a_preset_or_bins_there_is_no_mask():
    assert mask("none", 28) is None

"""What a cache saved of an item's FLOPs, and the end of a run whose cache did nothing."""

import pytest

from difftool.anatomy import Request
from difftool.errors import PlanError
from difftool.families.flux1.anatomy import COST
from difftool.families.flux1.facts import FACTS
from difftool.pipeline.flops import block_shares
from difftool.profiling.reuse import check_hits
from difftool.recipe.schema import CacheSpec
from difftool.report.reuse import CacheUse, cache_line, summed_up, with_shares

VALUES = {"height": 1024, "width": 1024, "max_sequence_length": 512, "extra": {}}
DEV = FACTS.checkpoints[0].configs


def use(kinds, *, changes=(), ran=4, blocks=8, forwards=4):
    denoiser = {"steps": [], "mask": None, "decisions": {}, "changes": {"blocks": list(changes)}}
    return CacheUse(
        kinds=kinds,
        forwards=forwards,
        blocks_run={"blocks": ran},
        blocks={"blocks": blocks},
        denoisers={"transformer": denoiser},
    )


def spec(**changes):
    return CacheSpec.model_validate({"backend": "dbcache", **changes}).model_dump(mode="json")


def test_the_blocks_of_a_denoiser_and_all_else_have_all_of_its_flops():
    anatomy = COST.anatomy(DEV, Request(VALUES))
    shares, counts = block_shares(anatomy), {block.name: block.count for block in anatomy.blocks}
    assert sum(shares[name] * count for name, count in counts.items()) == pytest.approx(1)
    assert shares["transformer_blocks"] > shares["single_transformer_blocks"] > 0


def test_the_ideal_is_that_of_the_flops_that_are_left():
    half = with_shares(use(["compute", "cached"] * 2), {"blocks": 0.4})
    assert half.flop_ideal == pytest.approx(4 / (4 - 4 * 0.4))
    found = summed_up([half, use(["compute"] * 4, ran=8).model_copy(update={"flop_ideal": 1.0})])
    assert (found["steps"], found["reused_steps"], found["hit_rate"]) == (8, 2, 0.25)
    assert found["flop_ideal_speedup"] == pytest.approx(8 / (4 - 1.6 + 4))
    line = cache_line({"cache": {"backend": "dbcache", **found}})
    assert line == "dbcache reused 2 of 8 steps (25 %), 1.25x by FLOPs at best"
    assert cache_line({}) == ""


def test_without_flops_nothing_is_said_of_an_ideal():
    found = summed_up([use(["compute", "cached"])])
    assert found["flop_ideal_speedup"] is None
    assert cache_line({"cache": {"backend": "dbcache", **found}}) == "dbcache reused 1 of 2 steps (50 %)"


def test_a_cache_that_reuses_less_than_was_asked_for_ends_the_run_with_the_change_that_it_saw():
    computed = use(["compute"] * 4, changes=[None, 0.5, 0.31234, 0.4])
    with pytest.raises(PlanError) as error:
        check_hits(computed, spec())
    assert error.value.message == (
        "cache.backend=dbcache reused 0 of 4 steps, less than the share of 0.01 that cache.min_hit_rate asks for: the "
        "smallest change from step to step was 0.312, and cache.residual_diff_threshold=0.24"
    )
    assert error.value.hint == (
        "raise the threshold, or use more steps; or leave the cache out, or accept it with cache.min_hit_rate=0"
    )
    check_hits(computed, spec(min_hit_rate=0))
    with pytest.raises(PlanError, match="reused 1 of 4 steps, less than the share of 0.5"):
        check_hits(use(["compute", "cached", "compute", "compute"]), spec(min_hit_rate=0.5))


def test_where_nothing_was_compared_the_warm_up_is_named():
    with pytest.raises(PlanError, match="no step was compared with the one before") as error:
        check_hits(use(["compute"] * 4, changes=[None] * 4), spec())
    assert error.value.hint.startswith("lower cache.max_warmup_steps=4, or use more steps than 4;")

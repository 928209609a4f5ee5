"""A cache of features on every family: exact where nothing is reused, the same twice, gone when it is taken off, and
the same on one rank and on several.
"""

from dataclasses import replace
from itertools import pairwise

import cache_dit
import pytest
import torch
from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern, TaylorSeerCalibratorConfig
from families.caching import ALONE, STEPS, cached, decisions, guided, made, spec_of
from families.cases import CASES
from families.choosing import first_of_each
from families.running import assemble_case, batch_for, context_for
from families.split import denoisers, observed
from pytest import mark, param

from difftool.acceleration import cache
from difftool.errors import PlanError
from difftool.pipeline.registry import load_config

LIMIT = 1e-5  # of the largest latent, after the full schedule in fp32: rounding, as keys come in another order
EAGER = {"residual_diff_threshold": 0.9}  # reuses whatever it may
TEA = {"backend": "teacache", "teacache": {"threshold": 0.5, "coefficients": [1.0, 0.0]}}


def tea_of(threshold):
    return spec_of(backend="teacache", teacache={"threshold": threshold, "coefficients": [1.0, 0.0]})


def reusing():
    """A distilled one has too few steps to reuse, and one that does not say what its blocks make is refused."""
    for case in CASES:
        if case.steps is None and load_config(case.family, case.pipeline_class).cache is not None:
            yield case


@pytest.mark.parametrize("name", list(first_of_each(reusing())))
def test_a_cache_is_exact_until_it_reuses_repeats_itself_and_leaves_nothing_behind(name):
    assembled = assemble_case(name)
    batch, ctx = guided(assembled), context_for(assembled)
    plain, _ = observed(assembled, batch, ctx)
    never, unused = made(assembled, batch, spec_of(residual_diff_threshold=0.0))
    assert torch.equal(never, plain) and unused.reused == 0 and unused.blocks_run == unused.blocks
    measured, changes = made(assembled, batch, tea_of(0.0))
    assert torch.equal(measured, plain) and changes.reused == 0
    for changes in (EAGER, {**EAGER, "taylorseer": {"enabled": True}}, TEA):
        with cached(assembled, spec_of(**changes)) as caches:
            first, used = observed(assembled, batch, replace(ctx, cache=caches))[0], caches.used()
            again = observed(assembled, batch, replace(ctx, cache=caches))[0]
        assert used.reused > 0 and not torch.equal(first, plain), used
        assert torch.equal(first, again), "a generation has traces of the one before"
        assert (first - plain).abs().max() < 0.2 * plain.abs().max()
    assert torch.equal(observed(assembled, batch, ctx)[0], plain)


def test_reused_steps_are_counted_from_the_blocks_that_ran():
    assembled = assemble_case("flux1-dev")
    batch, ran = guided(assembled), {"transformer_blocks": [], "single_transformer_blocks": []}
    handles = [
        block.register_forward_pre_hook(lambda *_, key=key, i=i: ran[key].append(i))
        for key in ran
        for i, block in enumerate(assembled.components.transformer.get_submodule(key))
    ]
    _, used = made(assembled, batch, spec_of(scm={"preset": "medium", "policy": "static"}))
    for handle in handles:
        handle.remove()
    assert used.blocks_run == {key: len(blocks) for key, blocks in ran.items()}
    assert {key: blocks.count(0) for key, blocks in ran.items()} == dict.fromkeys(ran, 2 * STEPS)  # both branches
    assert used.kinds == ["compute" if bit == "1" else "cached" for bit in used.denoisers["transformer"].mask]
    assert used.blocks == dict.fromkeys(ran, 2 * 2 * STEPS) and used.forwards == 2 * STEPS
    assert {key: blocks.count(1) for key, blocks in ran.items()} == dict.fromkeys(ran, 2 * used.kinds.count("compute"))


@pytest.mark.parametrize("branches", [1, 2])
def test_the_latents_are_those_of_cache_dit_itself(branches):
    """With one branch, and with two that the positive one judges."""
    assembled = assemble_case("flux1-schnell")
    batch = guided(assembled) if branches == 2 else batch_for(assembled, num_inference_steps=STEPS)
    plain, _ = observed(assembled, batch, context_for(assembled))
    for order in (None, 1, 2):
        seer = {"enabled": order is not None, "order": order or 1}
        ours, used = made(assembled, batch, spec_of(**EAGER, max_warmup_steps=3, taylorseer=seer))
        theirs = made_by_cache_dit(assembled, batch, order, separate=branches == 2)
        assert used.forwards == branches * STEPS
        assert torch.equal(ours, theirs) and not torch.equal(ours, plain), order


def made_by_cache_dit(assembled, batch, order, *, separate):
    """The latents with cache-dit's own adapter, counting and decision, of a threshold of 0.9 and 3 steps to warm up."""
    transformer, pattern = assembled.components.transformer, ForwardPattern.Pattern_1
    adapter = BlockAdapter(
        transformer=transformer,
        blocks=[transformer.transformer_blocks, transformer.single_transformer_blocks],
        forward_pattern=[pattern, pattern],
        has_separate_cfg=separate,
    )
    config = DBCacheConfig(
        Fn_compute_blocks=1,
        residual_diff_threshold=0.9,
        max_warmup_steps=3,
        max_continuous_cached_steps=3,
        enable_separate_cfg=separate,
        cfg_diff_compute_separate=False,
        num_inference_steps=STEPS,
    )
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
    cache_dit.enable_cache(adapter, cache_config=config, calibrator_config=calibrator)
    latents, _ = observed(assembled, batch, context_for(assembled))
    cache_dit.disable_cache(transformer)
    return latents


def test_both_experts_have_a_cache_with_steps_of_their_own():
    assembled = assemble_case("wan22-t2v")
    batch = guided(assembled, num_inference_steps=24)
    spec = spec_of(**EAGER, max_warmup_steps=2, secondary={"max_warmup_steps": 5, "max_continuous_cached_steps": 1})
    _, used = made(assembled, batch, spec)
    first, second = used.denoisers["transformer"], used.denoisers["transformer_2"]
    assert first.steps + second.steps == list(range(24)) and first.steps and second.steps
    assert first.decisions["blocks"].startswith("11000") and second.decisions["blocks"].startswith("1111101")
    _, masked = made(assembled, batch, spec_of(scm={"preset": "medium", "policy": "static"}))
    for each in masked.denoisers.values():
        assert each.decisions["blocks"] == each.mask and len(each.mask) == len(each.steps)


def test_an_expert_with_too_few_steps_for_a_mask_is_refused():
    assembled = assemble_case("wan22-t2v")
    with pytest.raises(PlanError, match="transformer runs 7 of the steps, fewer than the 8 a mask needs"):
        made(assembled, guided(assembled, num_inference_steps=12), spec_of(scm={"preset": "fast"}))


def test_lists_that_leave_no_block_to_reuse_are_refused():
    assembled = assemble_case("flux1-dev")
    with pytest.raises(PlanError, match="transformer has 2 blocks in a row, and 2 are always computed"):
        made(assembled, guided(assembled), spec_of(bn_compute_blocks=1))


def test_a_branch_that_ends_begins_the_cache_anew():
    """Z-Image's negative branch stops in the middle: what the joint forwards left is not used by what follows."""
    assembled = assemble_case("zimage")
    batch = guided(assembled, extra={"cfg_truncation": 0.5})
    _, used = made(assembled, batch, spec_of(**EAGER, max_warmup_steps=1, max_continuous_cached_steps=-1))
    found = used.denoisers["transformer"].decisions["layers"]
    assert found.count("1") == 2 and found[0] == "1", found


def test_teacache_adds_up_the_changes_of_the_first_block_s_input():
    assembled = assemble_case("flux1-dev")
    batch = guided(assembled)
    inputs, attention = [], assembled.components.transformer.transformer_blocks[0].attn
    handle = attention.register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append(kwargs["hidden_states"].clone()), with_kwargs=True
    )
    _, used = made(assembled, batch, spec_of(**{**TEA, "teacache": {"threshold": 0.4, "coefficients": [2.0, 0.1]}}))
    handle.remove()
    positive, denoiser = inputs[::2], used.denoisers["transformer"]
    seen = [None] + [float((one - two).abs().sum() / one.abs().sum()) for one, two in pairwise(positive)]
    assert denoiser.changes["transformer_blocks"][1:] == pytest.approx(seen[1:], rel=1e-5)
    total, expected = 0.0, "1"
    for step, change in enumerate(seen[1:], start=1):
        total += 2.0 * change + 0.1
        computed = total >= 0.4 or step == STEPS - 1
        total, expected = (0.0, expected + "1") if computed else (total, expected + "0")
    assert set(denoiser.decisions.values()) == {expected} and "0" in expected
    # of the first list, the block that the input is seen in runs in every step
    computed = expected.count("1")
    assert used.blocks_run == {
        "transformer_blocks": 2 * (STEPS + computed),
        "single_transformer_blocks": 2 * 2 * computed,
    }


def test_a_measuring_teacache_tells_how_the_output_changed():
    assembled = assemble_case("ltx")
    outputs, blocks = [], assembled.components.transformer.transformer_blocks
    handle = blocks[-1].register_forward_hook(lambda module, args, made: outputs.append(made.chunk(2)[1].clone()))
    _, used = made(assembled, guided(assembled), tea_of(0.0))
    handle.remove()
    expected = [float((one - two).abs().sum() / one.abs().sum()) for one, two in pairwise(outputs)]
    assert used.denoisers["transformer"].outputs == [None, *(pytest.approx(value, rel=1e-5) for value in expected)]


@pytest.mark.parametrize(
    ("case", "asked", "outcome"),
    [
        ("flux1-dev", {}, 0.25),
        ("flux1-dev", {"threshold": 0.4}, 0.4),
        ("flux1-kontext", {}, "cache.teacache.threshold and cache.teacache.coefficients: nothing is published"),
        ("qwenimage", {"threshold": 0.1}, "cache.teacache.coefficients: nothing is published for this pipeline"),
    ],
)
def test_what_is_published_holds_for_the_pipelines_that_it_was_fitted_to(case, asked, outcome):
    config = assemble_case(case).config
    spec = spec_of(backend="teacache", teacache=asked)
    found = cache.resolve(spec, config.cache, ALONE, config.pipeline.teacache)
    if isinstance(outcome, str):
        assert found.reason.startswith(outcome) and "difftool calibrate" in found.reason
    else:
        assert found.detail["threshold"] == outcome and len(found.detail["coefficients"]) == 5


def test_between_forwards_the_blocks_are_those_of_the_family():
    assembled = assemble_case("flux1-dev")
    transformer, names = assembled.components.transformer, list(assembled.components.transformer.state_dict())
    blocks = list(transformer.transformer_blocks)
    with cached(assembled, spec_of()):
        assert list(transformer.transformer_blocks) == blocks
        assert list(transformer.state_dict()) == names


SEVERAL = [
    ("flux1-dev", {"ulysses": 2}, {}, ""),
    ("flux1-dev", {"ring": 2}, {}, "slow"),
    ("flux1-dev", {"cfg": 2}, {}, "slow"),
    ("hunyuanvideo", {"ulysses": 2}, {"sharing": 2}, ""),
    ("flux1-dev", {"cfg": 2}, {"sharing": 2}, "slow"),
    ("zimage", {"cfg": 2}, {}, "slow"),
    ("zimage", {"ring": 2}, {}, "slow"),
    ("zimage", {"cfg": 2}, {"changes": {"extra": {"cfg_truncation": 0.5}}}, ""),
    ("sd3-medium", {"cfg": 2}, {}, ""),  # whose branches would decide unlike
    ("ltx", {"cfg": 2, "ulysses": 2}, {}, "slow"),
    ("qwenimage", {"tp": 2}, {}, ""),
    ("qwenimage", {"ulysses": 2, "tp": 2}, {}, "slow"),
    ("flux2-dev", {"ulysses": 2}, {}, ""),  # which puts the tokens together after its last block
    ("wan22-t2v", {"cfg": 2, "ulysses": 2}, {}, "slow"),
]
WAYS = {
    "by the input": TEA,
    "by change": {"residual_diff_threshold": 0.3, "max_continuous_cached_steps": -1},
    "extrapolated": {**EAGER, "taylorseer": {"enabled": True}},
}


LARGE = ("flux2-dev", "zimage")  # whose changes from step to step are all larger


def every_way():
    for case, degrees, more, pace in SEVERAL:
        for way, spec in WAYS.items() if pace == "" else [("by change", WAYS["by change"])]:
            own = EAGER if case in LARGE and way == "by change" else spec
            slow = pace == "slow" or way != "by change"
            name = f"{case}-{'-'.join(degrees)}{'-' if more else ''}{'-'.join(more)}-{way}"
            yield param(case, degrees, own, more, id=name, marks=mark.slow if slow else ())


@pytest.mark.parametrize(("case", "degrees", "spec", "more"), list(every_way()))
def test_several_ranks_decide_as_one_does_and_make_its_latents(ranks, saved, case, degrees, spec, more):
    world = 1
    for degree in degrees.values():
        world *= degree
    answers = run(ranks, saved, world, case=case, degrees=degrees, spec=spec, **more)
    check(answers)
    assert all(answer["reused"] > 0 and answer["lossy"] > 100 * LIMIT * answer["scale"] for answer in answers)


def test_replicas_decide_for_their_own_items(ranks, saved):
    """Two replicas of two ranks, whose items change unlike: each sums over its own ranks alone."""
    spec = {"residual_diff_threshold": 0.3, "max_continuous_cached_steps": -1}
    values = {"case": "sd3-medium", "degrees": {"dp": 2, "ulysses": 2}, "seeds": [7, 8]}
    answers = run(ranks, saved, 4, spec=spec, **values)
    check(answers)
    first, other = answers[0]["split"], answers[2]["split"]
    assert first == answers[1]["split"] and other == answers[3]["split"] and first != other


def run(ranks, saved, world, *, case, **values):
    return ranks.run("families.caching:compare", world=world, case=case, folder=str(saved(case)), **values)


def check(answers):
    for answer in answers:
        assert answer["split"] == answer["alone"], answer
        assert answer["difference"] <= LIMIT * answer["scale"], answer


def test_every_family_says_what_its_blocks_make():
    for case in CASES:
        plan, transformers = load_config(case.family, case.pipeline_class).cache, denoisers(assemble_case(case.name))
        for transformer in transformers:
            assert all(len(transformer.get_submodule(name)) for name in plan.blocks)


def test_forwards_of_one_branch_are_judged_too():
    assembled = assemble_case("qwenimage")
    _, used = made(assembled, batch_for(assembled, num_inference_steps=STEPS), spec_of(**EAGER))
    assert decisions(used)["transformer"]["transformer_blocks"] == "1111000100"

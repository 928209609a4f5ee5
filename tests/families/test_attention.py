"""Attention backends on every family: each computes what torch's own does, however split, and leaves nothing behind."""

from contextlib import contextmanager
from dataclasses import replace
from math import prod

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from families.attending import attending, counting
from families.cases import CASES
from families.choosing import first_of_each
from families.running import assemble_case, batch_for, context_for
from families.split import denoisers, observed, request_named

from difftool.acceleration import attention
from difftool.acceleration.attention import by_role
from difftool.acceleration.attention.kernels import FlexKernel
from difftool.attention import CROSS, SELF
from difftool.parallel.seam import TorchKernel, attends_through

LIMIT = 1e-5  # of the largest latent, after the full schedule in fp32: rounding, as scores are summed in another order


@pytest.mark.parametrize("name", list(first_of_each(CASES)))
def test_flex_makes_the_latents_of_torch(name):
    assembled = assemble_case(name)
    batch, ctx = batch_for(assembled), context_for(assembled)
    right, _ = observed(assembled, batch, ctx)
    with (
        attending(assembled, dict.fromkeys(assembled.config.facts.attention, "flex")),
        counting("flex_attention") as calls,
        counted_forwards(assembled) as forwards,
    ):
        ours, _ = observed(assembled, batch, ctx)
    bound = [len(found[SELF]) + len(found[CROSS]) for found in roles_of(assembled)]
    assert calls[0] == len(forwards) * bound[0] > 0 and len(set(bound)) == 1
    assert (ours - right).abs().max() <= LIMIT * right.abs().max()
    assert torch.equal(observed(assembled, batch, ctx)[0], right)


@contextmanager
def counted_forwards(assembled):
    """An entry for every forward of a denoiser meanwhile."""
    forwards = []
    handles = [model.register_forward_hook(lambda *_: forwards.append(1)) for model in denoisers(assembled)]
    yield forwards
    for handle in handles:
        handle.remove()


def roles_of(assembled):
    return [by_role(model, assembled.config.sequence) for model in denoisers(assembled)]


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_a_family_names_the_roles_that_its_blocks_have(name):
    assembled = assemble_case(name)
    for model, found in zip(denoisers(assembled), roles_of(assembled), strict=True):
        assert tuple(role for role in (SELF, CROSS) if found[role]) == assembled.config.facts.attention
        heads = {module.to_q.weight.shape[0] // module.heads for module in found[SELF] if hasattr(module, "to_q")}
        assert heads <= {assembled.config.facts.head_width({"transformer": model.config})}


STANDS_FOR = {"self": "flex", "cross": "cudnn"}  # backends in whose places masks are noted


class Noting(TorchKernel):
    """Torch's own, which keeps whether there were masks."""

    def __init__(self):
        self.masked = set()

    def __call__(self, query, key, value, attn_mask=None, **more):
        self.masked.add(attn_mask is not None)
        return super().__call__(query, key, value, attn_mask=attn_mask, **more)


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("name", list(first_of_each(CASES)))
def test_a_family_says_which_of_its_attention_is_masked(name, joined, monkeypatch):
    assembled = assemble_case(name)
    facts, noting = assembled.config.facts, {role: Noting() for role in assembled.config.facts.attention}
    makers = {STANDS_FOR[role]: lambda kernel=kernel: kernel for role, kernel in noting.items()}
    monkeypatch.setattr(attention, "KERNELS", {**makers, "torch_sdpa": TorchKernel})
    batch = request_named(assembled, "guided")
    # the negative prompt is one of another length
    batch = replace(batch, negative_prompt=["a long and blurry picture " * 9]) if batch.negative_prompt else batch
    with attending(assembled, {role: STANDS_FOR[role] for role in facts.attention}):
        observed(assembled, batch, replace(context_for(assembled), joined=joined))
    for role in facts.attention:
        when = facts.masked.get(role)
        assert noting[role].masked == {when == "always" or (when == "joined" and joined)}, role


def test_joined_and_separate_branches_make_the_same_picture():
    assembled = assemble_case("zimage")
    batch, ctx = request_named(assembled, "guided"), context_for(assembled)
    (together, some), (apart, more) = (observed(assembled, batch, replace(ctx, joined=j)) for j in (True, False))
    assert len(more) == 2 * len(some)
    assert (apart - together).abs().max() <= LIMIT * together.abs().max()


def test_two_pipelines_in_one_process_keep_their_own_kernels(monkeypatch):
    """Whatever kernel diffusers is told to use: nothing is set there, nothing is read."""

    def forbidden(*_, **__):
        raise AssertionError("diffusers chose a kernel")

    name = AttentionBackendName._NATIVE_MATH
    monkeypatch.setitem(_AttentionBackendRegistry._backends, name, forbidden)
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", name)
    one, other = assemble_case("flux1-dev"), assemble_case("wan21-t2v")
    with attending(one, {"self": "flex"}), attending(other, {"self": "torch_sdpa", "cross": "flex"}):
        assert kernels_of(one) == {SELF: {FlexKernel}, CROSS: set()}
        assert kernels_of(other) == {SELF: {TorchKernel}, CROSS: {FlexKernel}}
        for assembled in (one, other):
            observed(assembled, batch_for(assembled), context_for(assembled))
    assert _AttentionBackendRegistry.get_active_backend()[0] == name
    assert kernels_of(one)[SELF] == {type(None)}


def kernels_of(assembled):
    (found,) = roles_of(assembled)
    return {role: {type(attends_through(module.processor)) for module in found[role]} for role in (SELF, CROSS)}


@pytest.mark.parametrize("degrees", [{"ulysses": 2}, {"ring": 2}], ids=str)
@pytest.mark.parametrize("case", ["flux1-dev", "wan21-t2v"])
def test_two_ranks_attend_through_the_backend_as_one_does(ranks, case, degrees):
    asked = {"case": case, "degrees": degrees, "request": "4 steps", "backend": "flex"}
    for answer in ranks.run("families.attending:compare", world=2, **asked):
        assert answer["calls"] > 0 and answer["sent"]
        assert answer["difference"] <= LIMIT * answer["scale"], answer


VIDEOS = ["wan21-t2v", "hunyuanvideo", "ltx"]
MOBA = {
    "temporal_chunk_size": 1,
    "temporal_topk": 1,
    "spatial_chunk_size": [2, 2],
    "spatial_topk": 1,
    "st_chunk_size": [2, 2, 2],
    "st_topk": 1,
    "moba_select_mode": "threshold",
    "moba_threshold_type": "query_head",
    "first_full_layer": 0,
    "first_full_step": 0,
    "temporal_layer": 1,
    "spatial_layer": 1,
    "st_layer": 1,
}


NOTHING = {
    "video_sparse_attn": {"sparsity": 0.0},
    "vmoba_attn": {"moba_config": {**MOBA, "moba_threshold": 1.0}},
}


@pytest.mark.parametrize("backend", NOTHING)
@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_of_which_nothing_is_left_out_is_as_with_torch(name, backend):
    assembled = assemble_case(name)
    batch, ctx = request_named(assembled, "uneven"), context_for(assembled)
    right, seen = observed(assembled, batch, ctx)
    roles = {**dict.fromkeys(assembled.config.facts.attention, "torch_sdpa"), "self": backend}
    with attending(assembled, roles, **NOTHING[backend]) as videos:
        ours, _ = observed(assembled, batch, ctx)
    (video,) = videos.values()
    told = video.told()
    assert told["visited_blocks"] == told["blocks"] > len(seen)
    assert prod(video.grid) == seen[0][0][0]  # the first stream is the video
    assert (ours - right).abs().max() <= LIMIT * right.abs().max()


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_of_which_much_is_left_out_is_another(name):
    assembled = assemble_case(name)
    batch, ctx = batch_for(assembled, num_frames=33), context_for(assembled)
    right, _ = observed(assembled, batch, ctx)
    roles = {**dict.fromkeys(assembled.config.facts.attention, "torch_sdpa"), "self": "video_sparse_attn"}
    with attending(assembled, roles, sparsity=0.9) as videos:
        ours, _ = observed(assembled, batch, ctx)
    (video,) = videos.values()
    told = video.told()
    assert told["visited_blocks"] < told["blocks"]
    assert (ours - right).abs().max() > 100 * LIMIT * right.abs().max()
    assert not any(module._forward_pre_hooks for module in denoisers(assembled))


@pytest.mark.parametrize("name", VIDEOS)
def test_the_first_steps_of_a_video_are_full_and_the_next_are_not(name):
    assembled = assemble_case(name)
    batch, ctx = batch_for(assembled, num_frames=33, num_inference_steps=2), context_for(assembled)
    right, _ = observed(assembled, batch, ctx)
    roles = {**dict.fromkeys(assembled.config.facts.attention, "torch_sdpa"), "self": "vmoba_attn"}
    made = {}
    for full in (0, 1, 2):
        config = {**MOBA, "moba_select_mode": "topk", "moba_threshold": 0.25, "first_full_step": full}
        with attending(assembled, roles, moba_config=config) as videos:
            made[full], _ = observed(assembled, batch, replace(ctx, videos=videos))
    far = [float((made[full] - right).abs().max() / right.abs().max()) for full in (0, 1, 2)]
    assert far[0] > 100 * LIMIT and far[1] > 100 * LIMIT and far[2] <= LIMIT
    assert not torch.equal(made[0], made[1])

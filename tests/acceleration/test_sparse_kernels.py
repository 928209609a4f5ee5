"""Specialised kernels make what FlexAttention makes of the same parts of a video, and are used where that is so."""

import inspect
import sys
from math import prod
from types import ModuleType, SimpleNamespace

import pytest
import torch
from acceleration.test_sparse_attention import dense, tensors
from acceleration.test_vmoba_attention import GRID, MODES, PARTS, pairs
from torch.nn.attention.varlen import AuxRequest, varlen_attn

from difftool.acceleration import attention, doctor
from difftool.acceleration.attention import Picked, fastvideo, sparse, trial, varlen, vmoba
from difftool.acceleration.attention.chunks import SIZE
from difftool.acceleration.attention.video import Layout, Video
from difftool.attention import FLEX, SPECIALISED, Needs, Site
from difftool.facts import Applied, Refused

CPU = torch.device("cpu")
TOLERANCE = 2e-6  # scores are summed in another order
HOPPER = Site("cuda", "bf16", (9, 0))


def flash_of_unlike_lengths(query, key, value, starts, key_starts, most, most_keys, *, return_aux, scale):
    """What `varlen_attn` promises: [R, 1, D] each -> the same of the queries, and [1, R] log-sum-exps."""
    assert return_aux == AuxRequest(lse=True) and starts.dtype == key_starts.dtype == torch.int32
    bounds = zip(starts.tolist(), starts[1:].tolist(), key_starts.tolist(), key_starts[1:].tolist(), strict=False)
    out, lse = torch.empty_like(query), torch.empty(1, len(query))
    for first, last, first_key, last_key in bounds:
        assert last - first <= most and 0 < last_key - first_key <= most_keys
        scores = query[first:last, 0] @ key[first_key:last_key, 0].T * (scale or query.shape[-1] ** -0.5)
        lse[0, first:last] = scores.logsumexp(-1)
        out[first:last, 0] = scores.softmax(-1) @ value[first_key:last_key, 0]
    return out, lse


@pytest.fixture
def flash(monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", flash_of_unlike_lengths)


def block_sparse(query, key, value, which, many, sizes):
    """What FastVideo's kernel promises: of [B, H, M x 64, D], each block sees the first so many that are named, and of
    those so many tokens. A block without tokens is never named: not every kernel of the package survives it.
    """
    assert which.dtype == many.dtype == sizes.dtype == torch.int32
    assert which.is_contiguous() and many.is_contiguous() and many.min() > 0
    batch, heads, blocks, _ = which.shape
    seen = torch.zeros(batch, heads, blocks * 64, blocks * 64, dtype=torch.bool)
    for b, h, i in torch.cartesian_prod(*(torch.arange(side) for side in (batch, heads, blocks))).tolist():
        for j in which[b, h, i, : many[b, h, i]].tolist():
            assert sizes[j] > 0
            seen[b, h, i * 64 : i * 64 + 64, j * 64 : j * 64 + sizes[j]] = True
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen), None


def with_package(monkeypatch, compute):
    package = ModuleType("fastvideo_kernel")
    package.block_sparse_attn_from_indices = compute
    monkeypatch.setitem(sys.modules, "fastvideo_kernel", package)


@pytest.mark.parametrize("others", [0, 5])
@pytest.mark.parametrize("cuts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("rule", MODES.values(), ids=MODES)
def test_gathered_queries_see_their_chunks_as_with_the_dense_mask_of_them(rule, cuts, others, flash):
    query, key, value = tensors(prod(GRID) + others, batch=2)
    video = Video(GRID)
    ours = vmoba.MobaKernel(video, cuts, rule, 0, varlen.compute)(query, key, value, scale=0.4)
    seen = pairs(query, key, GRID, cuts, rule)
    assert torch.allclose(ours, dense(query * 0.4 * 8**0.5, key, value, seen), atol=TOLERANCE)
    told = video.told()
    assert told["visited_blocks"] == pytest.approx(seen.float().mean().item() * told["blocks"], abs=0.5)


@pytest.mark.parametrize(("numbers", "calls"), [(1, 5), (2 * prod(GRID) * 2 * 8 * 2, 3)])
def test_heads_that_are_gathered_apart_make_what_all_make_at_once(numbers, calls, monkeypatch):
    given, counted = tensors(prod(GRID), batch=2, heads=5), []

    def flash(*given, **more):
        counted.append(1)
        return flash_of_unlike_lengths(*given, **more)

    monkeypatch.setattr(varlen, "varlen_attn", flash)
    kernel = vmoba.MobaKernel(Video(GRID), PARTS["st"], MODES["topk"], 0, varlen.compute)
    whole = kernel(*given)
    assert len(counted) == 1
    monkeypatch.setattr(varlen, "GATHERED", numbers)
    assert torch.equal(kernel(*given), whole) and len(counted) == 1 + calls


def test_full_steps_count_as_many_blocks_as_gathered_ones_could(flash):
    video = Video(GRID, step=0)
    given = tensors(prod(GRID) + 5)
    kernel = vmoba.MobaKernel(video, PARTS["st"], vmoba.Rule("threshold", "query_head", None, 1.0), 1, varlen.compute)
    kernel(*given)
    full = video.told()
    video.step = 1
    kernel(*given)
    assert video.told() == full == {"visited_blocks": full["blocks"], "blocks": 2 * (-(-(prod(GRID) + 5) // SIZE)) ** 2}


def test_what_a_query_gets_of_its_groups_is_weighed_by_their_scores():
    """As one softmax over the keys of both, where the scores of the first are far larger."""
    scores, values = torch.tensor([[90.0, 91.0], [3.0, 89.0]]), torch.randn(2, 2, 3)
    parts = (scores.softmax(-1)[..., None] * values).sum(1)
    rows, others = torch.tensor([1, 0, 1]), torch.tensor([1.0, 2.0, 3.0])
    out, lse = (
        torch.stack([parts[0], others, parts[1]]),
        torch.tensor([scores[0].logsumexp(0), -800, scores[1].logsumexp(0)]),
    )
    whole = (scores.flatten().softmax(0)[:, None] * values.flatten(0, 1)).sum(0)
    assert torch.allclose(varlen.joined(out, lse, rows, 2), torch.stack([others, whole]), atol=TOLERANCE)


def test_torch_tells_the_log_sum_exp_of_unlike_lengths_as_this_reads_it():
    """On a CPU the kernel is not there, but its shapes are: a release that changes them is noticed."""
    named = list(inspect.signature(varlen_attn).parameters)
    assert named[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"return_aux", "scale"} < set(named)
    query, key = torch.empty(7, 1, 8, device="meta"), torch.empty(9, 1, 8, device="meta")
    starts = torch.empty(3, dtype=torch.int32, device="meta")
    out, lse = varlen_attn(query, key, key, starts, starts, 4, 5, return_aux=AuxRequest(lse=True), scale=None)
    assert (out.shape, lse.shape, lse.dtype) == ((7, 1, 8), (1, 7), torch.float32)


@pytest.mark.parametrize("others", [0, 70])
@pytest.mark.parametrize("tile", [sparse.CUBE, sparse.SLIDING_TILE])
@pytest.mark.parametrize("grid", [(5, 9, 10), (8, 8, 8)])
def test_fastvideo_s_kernel_is_told_of_the_same_tiles(grid, tile, others, monkeypatch):
    with_package(monkeypatch, block_sparse)
    given, told = tensors(prod(grid) + others, batch=2), []
    made = []
    for compute in (sparse.by_flex, fastvideo.compute):
        video = Video(grid)
        made.append(sparse.TileKernel("video_sparse_attn", video, tile, sparse.TopCubes(0.5), compute)(*given))
        told.append(video.told())
    assert torch.allclose(*made, atol=TOLERANCE) and told[0] == told[1]
    assert told[0]["visited_blocks"] < told[0]["blocks"]


def test_the_windows_of_every_sample_are_the_same(monkeypatch):
    with_package(monkeypatch, block_sparse)
    grid, given = (6, 16, 24), tensors(6 * 16 * 24, batch=2)

    def in_window(query, key, layout):
        return sparse.windows([(1, 1, 1), (1, 2, 2)], layout.tiles)[None]

    made = [
        sparse.TileKernel("sliding_tile_attn", Video(grid), sparse.SLIDING_TILE, in_window, compute)(*given)
        for compute in (sparse.by_flex, fastvideo.compute)
    ]
    assert torch.allclose(*made, atol=TOLERANCE)


def test_the_tokens_of_a_tile_come_before_its_gaps():
    layout = Layout((5, 9, 10), sparse.SLIDING_TILE, 70, CPU)
    sizes = fastvideo.sizes_of(layout)
    assert sizes.sum() == 5 * 9 * 10 + 70 and (sizes == 0).any()
    there = layout.there.view(-1, fastvideo.BLOCK)
    assert torch.equal(there, torch.arange(fastvideo.BLOCK) < sizes[:, None])


def test_a_trial_tells_a_right_kernel_from_a_wrong_one(monkeypatch, flash):
    assert trial.probe_kernel("vmoba_attn", CPU, torch.float32) == ""
    with_package(monkeypatch, block_sparse)
    for name in ("video_sparse_attn", "sliding_tile_attn"):
        assert trial.probe_kernel(name, CPU, torch.float32) == ""

    def blind_to_gaps(query, key, value, which, many, sizes):
        return block_sparse(query, key, value, which, many, torch.full_like(sizes, 64))

    with_package(monkeypatch, blind_to_gaps)
    assert trial.probe_kernel("video_sparse_attn", CPU, torch.float32).startswith("its result is wrong: it differs by ")
    monkeypatch.setitem(sys.modules, "fastvideo_kernel", None)
    assert trial.probe_kernel("video_sparse_attn", CPU, torch.float32).startswith("import of fastvideo_kernel halted")


FAILS = "kernel fastvideo was tried out here and fails: no kernel image; use flex"
CASES = [  # of a recipe's kernel, what a trial of it finds, the site -> what computes it
    ("auto", "", HOPPER, "fastvideo"),
    (None, "", HOPPER, "fastvideo"),
    ("fastvideo", "", HOPPER, "fastvideo"),
    ("flex", "", HOPPER, FLEX),
    ("auto", "no kernel image", HOPPER, FLEX),
    ("auto", "", Site("cpu", "fp32"), FLEX),
    ("auto", "", Site("cuda", "fp16", (9, 0)), FLEX),
    ("fastvideo", "no kernel image", HOPPER, FAILS),
    ("fastvideo", "", Site("cpu", "fp32"), "kernel fastvideo runs on CUDA and ROCm, and this is a CPU; use flex"),
]


@pytest.mark.parametrize(("asked", "fault", "site", "found"), CASES)
def test_the_specialised_kernel_is_taken_where_it_works_and_refused_where_it_is_asked_for_and_does_not(
    asked, fault, site, found, monkeypatch
):
    monkeypatch.setattr("difftool.attention._version", lambda name: {"fastvideo-kernel": "0.3.5"}.get(name))
    monkeypatch.setattr(attention, "probe_kernel", lambda *_: fault)
    setting = {"self": {"name": "video_sparse_attn", "sparsity": 0.5, **({"kernel": asked} if asked else {})}}
    needs, sites = {"transformer": {"self": Needs(64, video=True), "cross": Needs(64)}}, {"transformer": site}
    made = attention.choose(setting, needs, sites)
    if isinstance(made, Applied):
        made = attention._with_kernels(made, setting, needs, SimpleNamespace(device=CPU), sites)
    if isinstance(made, Refused):
        key = "stages.denoising.attention.kernel=fastvideo, for video_sparse_attn of transformer: "
        assert made.reason == key + found
    else:
        assert made.detail["transformer"] == {"self": Picked("video_sparse_attn", found), "cross": "torch_sdpa"}


def test_a_kernel_that_is_not_installed_is_refused_with_the_line_that_installs_it():
    setting = {"self": {"name": "video_sparse_attn", "sparsity": 0.5, "kernel": "fastvideo"}}
    made = attention.choose(setting, {"transformer": {"self": Needs(64, video=True)}}, {"transformer": HOPPER})
    assert isinstance(made, Refused)
    assert "needs fastvideo-kernel, which is not installed; install: pip install fastvideo-kernel" in made.reason


@pytest.mark.parametrize("name", SPECIALISED)
def test_the_doctor_says_which_kernel_computes_what_leaves_out_parts_of_a_video(name):
    found = doctor.attention(name)
    assert found["kernel"] == FLEX and found["because"].startswith(f"kernel {SPECIALISED[name][0]} runs on CUDA")


@pytest.mark.gpu
@pytest.mark.parametrize("name", SPECIALISED)
def test_the_specialised_kernel_of_a_gpu_makes_what_flex_attention_makes(name):
    if SPECIALISED[name][0] == "fastvideo":
        pytest.importorskip("fastvideo_kernel")
    for head in (64, 128):
        assert trial.probe_kernel(name, torch.device("cuda"), torch.bfloat16, head) == ""

"""VMoBA equals torch's attention with the pairs masked that its own words leave out, and counts what it visits."""

from itertools import product
from math import ceil, inf, prod

import pytest
import torch
from acceleration.test_sparse_attention import dense, tensors, tile_of

from difftool.acceleration.attention import vmoba
from difftool.acceleration.attention.sparse import tile_kernels
from difftool.acceleration.attention.video import Video, mask_of_blocks
from difftool.acceleration.attention.vmoba import SIZE, Chunks, MobaKernel, Rule, blocks_of, choices, visible_by
from difftool.errors import PlanError

TOLERANCE = 2e-6  # scores are summed in another order
GRID = (5, 6, 7)
PARTS = {"temporal": (2, None, None), "spatial": (None, 4, 3), "st": (2, 3, 4)}  # none divides the grid
MODES = {
    "topk": Rule("topk", "query_head", 2, 0.0),
    "threshold": Rule("threshold", "query_head", None, 0.4),
}
CONFIG = {
    "temporal_chunk_size": 2,
    "temporal_topk": 1,
    "spatial_chunk_size": [4, 3],
    "spatial_topk": 2,
    "st_chunk_size": [2, 3, 4],
    "st_topk": 3,
    "moba_select_mode": "topk",
    "moba_threshold": 0.25,
    "moba_threshold_type": "query_head",
    "first_full_layer": 0,
    "first_full_step": 0,
    "temporal_layer": 1,
    "spatial_layer": 1,
    "st_layer": 1,
}


def sides(cuts, grid):
    return tuple(side if by is None else by for by, side in zip(cuts, grid, strict=True))


def group_of(scope, head, token, chunk):
    """Those of a sample that share a choice have this in common."""
    return {"query_head": (head, token), "head_global": head, "block": chunk, "overall": None}[scope]


def wanted(entries, rule, chunks):
    """Which of (likeness, is its own, name) a choice takes, by the words of the paper and FastVideo's configuration."""
    if rule.mode == "topk":
        kept = min(rule.topk, chunks) * len(entries) // chunks
        return {name for _, _, name in sorted(entries, key=lambda entry: (not entry[1], -entry[0]))[:kept]}
    least, most = min(entry[0] for entry in entries), max(entry[0] for entry in entries)
    shares = [((likeness - least) / (most - least), own, name) for likeness, own, name in entries]
    total = sum(share for share, _, _ in shares)
    taken = {name for _, own, name in shares if own}
    reached = sum(share for share, own, _ in shares if own)
    for at, (share, _, name) in enumerate(sorted((s for s in shares if not s[1]), key=lambda entry: -entry[0])):
        if at and reached >= rule.threshold * (total + 1e-6):  # so that 1 is all of them
            break
        taken, reached = taken | {name}, reached + share
    return taken


def pairs(query, key, grid, cuts, rule):
    """[B, H, S, S] which pairs are seen, token by token and chunk by chunk."""
    batch, tokens, heads, _ = query.shape
    tiles = [tile_of(token, grid, sides(cuts, grid)) for token in range(tokens)]
    names, video = sorted({each for each in tiles if each is not None}), prod(grid)
    members = {name: [token for token, each in enumerate(tiles) if each == name] for name in names}
    seen = torch.ones(batch, heads, tokens, tokens, dtype=torch.bool)
    for sample in range(batch):
        means = torch.stack([key[sample, members[name]].double().mean(0) for name in names])
        likeness = torch.einsum("thd,chd->htc", query[sample, :video].double(), means).tolist()
        groups = {}
        for head, token, chunk in product(range(heads), range(video), range(len(names))):
            entry = (likeness[head][token][chunk], names[chunk] == tiles[token], (head, token, chunk))
            groups.setdefault(group_of(rule.scope, head, token, chunk), []).append(entry)
        taken = set().union(*(wanted(entries, rule, len(names)) for entries in groups.values()))
        for head, token, chunk in product(range(heads), range(video), range(len(names))):
            if (head, token, chunk) not in taken:
                seen[sample, head, token, members[names[chunk]]] = False
    return seen


@pytest.mark.parametrize("others", [0, 5])
@pytest.mark.parametrize("cuts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("rule", MODES.values(), ids=MODES)
def test_every_query_sees_its_chunks_as_with_the_dense_mask_of_them(rule, cuts, others):
    query, key, value = tensors(prod(GRID) + others, batch=2)
    ours = MobaKernel(Video(GRID), cuts, rule, 0)(query, key, value)
    seen = pairs(query, key, GRID, cuts, rule)
    assert torch.allclose(ours, dense(query, key, value, seen), atol=TOLERANCE)
    assert 0.1 < seen.float().mean() < 0.9
    assert (seen[:, 0] != seen[:, 1]).any() and (seen[0] != seen[1]).any()


@pytest.mark.parametrize(
    "rule",
    [
        Rule("topk", "head_global", 2, 0.0),
        Rule("topk", "overall", 2, 0.0),
        Rule("threshold", "head_global", None, 0.3),
        Rule("threshold", "block", None, 0.3),
        Rule("threshold", "overall", None, 0.3),
        Rule("threshold", "query_head", None, 0.0),  # one chunk besides its own
        Rule("threshold", "query_head", None, 1.0),
        Rule("topk", "query_head", 1, 0.0),  # its own alone
        Rule("topk", "query_head", 99, 0.0),
    ],
    ids=lambda rule: f"{rule.mode}-{rule.scope}-{rule.topk}-{rule.threshold}",
)
def test_queries_choose_alone_or_together(rule):
    grid, cuts = (3, 4, 5), (2, 2, 2)
    query, key, value = tensors(prod(grid) + 3, batch=2)
    ours = MobaKernel(Video(grid), cuts, rule, 0)(query, key, value)
    assert torch.allclose(ours, dense(query, key, value, pairs(query, key, grid, cuts, rule)), atol=TOLERANCE)


@pytest.mark.parametrize("others", [0, 5, 64])
@pytest.mark.parametrize("cuts", [(1, None, None), (None, 2, 5), (2, 4, 9)], ids=str)
def test_the_blocks_that_are_visited_are_those_that_have_a_pair_in_them(cuts, others):
    grid, rule = (5, 8, 9), Rule("topk", "query_head", 1, 0.0)
    video, (query, key, value) = Video(grid), tensors(prod(grid) + others)
    MobaKernel(video, cuts, rule, 0)(query, key, value)
    order = sorted(range(prod(grid)), key=lambda token: tile_of(token, grid, sides(cuts, grid)))
    order += range(prod(grid), prod(grid) + others)
    seen = pairs(query, key, grid, cuts, rule)[:, :, order][:, :, :, order]
    blocks = ceil(len(order) / SIZE)
    visited = sum(
        bool(seen[0, head, i * SIZE : (i + 1) * SIZE, j * SIZE : (j + 1) * SIZE].any())
        for head, i, j in product(range(2), range(blocks), range(blocks))
    )
    assert video.told() == {"visited_blocks": visited, "blocks": 2 * blocks**2}
    assert visited < 2 * blocks**2


@pytest.mark.parametrize("others", [0, 5, 64])
def test_the_compiled_kernel_is_told_of_the_blocks_of_which_all_is_seen(others):
    """On a CPU the mask is looked at pair by pair: what a kernel that skips blocks goes by is compared here."""
    grid = (4, 16, 16)
    chunks = Chunks(grid, (1, 8, 8), others, torch.device("cpu"))
    query, key, _ = tensors(prod(grid) + others)
    packed = query[:, chunks.order].transpose(1, 2)
    choice = choices(packed, chunks.means(key), chunks, MODES["topk"])
    seen, whole = blocks_of(choice, chunks)
    mask = mask_of_blocks(seen, whole, SIZE, visible_by(choice, chunks.group))
    assert torch.equal(mask.to_dense().bool(), seen)
    by_pair = choice[..., chunks.group].unflatten(3, (-1, SIZE)).unflatten(2, (-1, SIZE))
    assert torch.equal(seen, by_pair.any(5).any(3)) and torch.equal(whole, by_pair.all(5).all(3))
    assert mask.full_kv_num_blocks.sum() == whole.sum() and 0 < whole.sum() < seen.sum() < seen.numel()


def test_heads_that_are_computed_apart_make_what_all_make_at_once(monkeypatch):
    given = tensors(60 + 5)
    kernels = [MobaKernel(Video((3, 4, 5)), PARTS["st"], MODES["threshold"], 0) for _ in range(2)]
    together = kernels[0](*given)
    monkeypatch.setattr(vmoba, "AT_ONCE", 1)
    assert torch.equal(kernels[1](*given), together)
    assert kernels[0].video.told() == kernels[1].video.told()


def test_more_that_choose_together_than_a_kernel_can_count_are_refused(monkeypatch):
    monkeypatch.setattr(vmoba, "MOST", 5000)
    rule = Rule("threshold", "overall", None, 0.3)
    with pytest.raises(PlanError, match="2 heads of 210 tokens choose among 12 chunks together, with moba_thresh") as e:
        MobaKernel(Video(GRID), PARTS["st"], rule, 0)(*tensors(prod(GRID)))
    assert e.value.hint == "use moba_threshold_type=query_head, or larger chunks"


def kernels_of(layers, **changed):
    return tile_kernels("vmoba_attn", {"moba_config": {**CONFIG, **changed}}, Video(GRID), [2] * layers)


def test_layers_take_turns_after_the_full_ones():
    made = kernels_of(8, first_full_layer=1, first_full_step=3, temporal_layer=2, spatial_layer=1, st_layer=1)
    names = {cuts: name for name, cuts in PARTS.items()}
    assert [names[kernel.cuts] for kernel in made[1:]] == ["temporal", "temporal", "spatial", "st"] + [
        "temporal", "temporal", "spatial"
    ]  # fmt: skip
    assert [kernel.full_steps for kernel in made] == [inf, *[3] * 7]
    assert [kernel.rule.topk for kernel in made[1:5]] == [1, 1, 2, 3]


def test_a_part_without_layers_has_no_turn():
    assert {kernel.cuts for kernel in kernels_of(5, spatial_layer=0)} == {PARTS["temporal"], PARTS["st"]}


def test_the_first_steps_and_layers_leave_nothing_out():
    given = tensors(prod(GRID) + 5)
    right, blocks = dense(*given, None), 2 * ceil((prod(GRID) + 5) / SIZE) ** 2
    full, sparse = kernels_of(2, first_full_layer=1, first_full_step=2)
    for kernel, step, whole in ((full, 9, True), (sparse, 1, True), (sparse, 2, False)):
        kernel.video.step = step
        assert torch.allclose(kernel(*given), right, atol=TOLERANCE) == whole
        if whole:
            assert kernel.video.told() == {"visited_blocks": blocks, "blocks": blocks}


def test_layers_of_which_all_are_full_are_refused():
    with pytest.raises(PlanError, match="first_full_layer=2 leaves none of 2 layers; lower it"):
        kernels_of(2, first_full_layer=2)


def test_a_chunk_larger_than_the_video_is_all_of_it():
    given = tensors(prod(GRID))
    (kernel,) = kernels_of(1, temporal_chunk_size=99)
    assert torch.allclose(kernel(*given), dense(*given, None), atol=TOLERANCE)


def test_a_mask_is_refused():
    with pytest.raises(PlanError, match="attention vmoba_attn takes no masks"):
        kernels_of(1)[0](*tensors(prod(GRID)), attn_mask=torch.ones(210, 210) > 0)

"""Attention that leaves out parts of a video equals torch's with the same pairs masked, and counts what it visits."""

import json
from math import ceil, prod

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from difftool.acceleration.attention import sparse
from difftool.acceleration.attention.sparse import (
    SLIDING_TILE,
    Layout,
    SlidingTile,
    TileKernel,
    TopCubes,
    Video,
    tile_kernels,
)
from difftool.attention import Strategy
from difftool.errors import PlanError

CPU = torch.device("cpu")
TOLERANCE = 2e-6  # scores are summed in another order


def tensors(tokens, *, heads=2, batch=1, width=8):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, tokens, heads, width, generator=generator) for _ in range(3)]


def dense(query, key, value, seen):
    """Torch's own, with `seen` [B, H, S, S] of all pairs."""
    given = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return scaled_dot_product_attention(*given, attn_mask=seen).transpose(1, 2)


def tile_of(token, grid, tile):
    """The tile of a token of a video, counted along each side; None of one beside it."""
    if token >= prod(grid):
        return None
    frame, rest = divmod(token, grid[1] * grid[2])
    place = (frame, *divmod(rest, grid[2]))
    return tuple(at // by for at, by in zip(place, tile, strict=True))


def pairs(tokens, grid, tile, sees):
    """[S, S] by asking `sees(tile of the query, tile of the key)` of every two tiles; what is beside a video sees all
    and is seen.
    """
    tiles = [tile_of(token, grid, tile) for token in range(tokens)]
    known = {
        (one, other): one is None or other is None or sees(one, other) for one in set(tiles) for other in set(tiles)
    }
    return torch.tensor([[known[one, other] for other in tiles] for one in tiles])


def in_window(size, counts):
    """Whether a tile lies in the window of another, which is moved inside at the edges of the video."""

    def sees(own, other):
        for width, count, at, there in zip(size, counts, own, other, strict=True):
            start = min(max(at - width // 2, 0), max(count - width, 0))
            if not start <= there < start + width:
                return False
        return True

    return sees


WINDOWS = [[(3, 3, 3), (1, 1, 1)], [(1, 2, 3), (5, 1, 9)]]  # by layer and head


@pytest.fixture
def strategy(tmp_path):
    file = tmp_path / "masks.json"
    said = {f"{s}_{la}_{h}": WINDOWS[la if s == 0 else 1 - la][h] for s in (0, 1) for la in (0, 1) for h in (0, 1)}
    file.write_text(json.dumps(said))
    return Strategy.read(str(file))


@pytest.mark.parametrize("others", [0, 5])
@pytest.mark.parametrize(("grid", "tile"), [((5, 6, 7), (2, 2, 4)), ((4, 4, 4), (2, 2, 2)), ((1, 9, 3), (6, 8, 8))])
@pytest.mark.parametrize(("step", "layer"), [(0, 0), (0, 1), (1, 0)])
def test_sliding_tiles_equal_the_dense_mask_of_their_windows(strategy, grid, tile, others, step, layer):
    video = Video(grid, step=step, steps=2)
    given = tensors(prod(grid) + others)
    ours = TileKernel("sliding_tile_attn", video, tile, SlidingTile(video, strategy, layer))(*given)
    counts = [ceil(side / by) for side, by in zip(grid, tile, strict=True)]
    sizes = WINDOWS[layer if step == 0 else 1 - layer]
    seen = torch.stack([pairs(prod(grid) + others, grid, tile, in_window(size, counts)) for size in sizes])[None]
    assert torch.allclose(ours, dense(*given, seen), atol=TOLERANCE)


def block_pairs(grid, tile, others, visible):
    """How many pairs of blocks have a pair of tokens in them."""
    places = [tile_of(token, grid, tile) for token in range(prod(grid))]
    beside = [("beside", at // prod(tile)) for at in range(others)]
    blocks = [*places, *beside]
    return len({(blocks[i], blocks[j]) for i, j in visible.nonzero().tolist()})


@pytest.mark.parametrize("others", [0, 5])
def test_the_blocks_that_are_visited_are_counted(strategy, others):
    grid, tile = (5, 6, 7), (2, 2, 4)
    video, given = Video(grid, steps=1), tensors(prod(grid) + others)
    TileKernel("sliding_tile_attn", video, tile, SlidingTile(video, strategy, 0))(*given)
    counts = [ceil(side / by) for side, by in zip(grid, tile, strict=True)]
    seen = [pairs(prod(grid) + others, grid, tile, in_window(size, counts)) for size in WINDOWS[0]]
    blocks = prod(counts) + ceil(others / prod(tile))
    expected = sum(block_pairs(grid, tile, others, each) for each in seen)
    assert video.told() == {"visited_blocks": expected, "blocks": 2 * blocks**2}
    assert expected < 2 * blocks**2
    assert video.told() == {"visited_blocks": 0, "blocks": 0}


def test_the_compiled_kernel_is_told_of_the_blocks_that_are_seen(strategy):
    """On a CPU the mask is looked at pair by pair: what a kernel that skips blocks goes by is compared here."""
    grid, tile = (5, 6, 7), (2, 2, 4)
    layout, video = Layout(grid, tile, 5, CPU), Video(grid, steps=1)
    packed = [layout.pack(tensor) for tensor in tensors(prod(grid) + 5)[:2]]
    seen = sparse.with_others(SlidingTile(video, strategy, 0)(*packed, layout), layout)
    mask = sparse.block_mask(seen, layout)
    assert torch.equal(mask.to_dense().bool(), seen)
    whole = mask.full_kv_num_blocks.sum() + mask.kv_num_blocks.sum()
    assert whole == seen.sum() and 0 < mask.full_kv_num_blocks.sum() < whole
    for head in range(2):
        for block, count in enumerate(mask.full_kv_num_blocks[0, head]):
            inside = mask.full_kv_indices[0, head, block, :count].long()
            assert layout.whole[inside].all() and seen[0, head, block, inside].all()


@pytest.mark.parametrize("others", [0, 7])
@pytest.mark.parametrize(("sparsity", "kept"), [(0.0, 12), (0.5, 6), (0.75, 3), (0.9, 2), (0.99, 1)])
def test_the_cubes_with_the_most_alike_means_are_seen(others, sparsity, kept):
    grid, tile = (6, 7, 9), (4, 4, 4)
    tokens, (query, key, value) = prod(grid) + others, tensors(prod(grid) + others, batch=2)
    video = Video(grid)
    ours = TileKernel("video_sparse_attn", video, tile, TopCubes(sparsity))(query, key, value)
    tiles = [tile_of(token, grid, tile) for token in range(tokens)]
    names = sorted({each for each in tiles if each is not None})
    member = torch.tensor([[name == each for each in tiles] for name in names]).float()
    means = [torch.einsum("ts,bshd->bhtd", member, x) / member.sum(1)[:, None] for x in (query, key)]
    scores = means[0] @ means[1].transpose(2, 3)
    least = scores.sort(descending=True).values[..., kept - 1 : kept]
    chosen = scores >= least
    assert (chosen.sum(-1) == kept).all()
    of = [names.index(each) if each is not None else len(names) for each in tiles]
    around = torch.nn.functional.pad(chosen, (0, 1, 0, 1), value=True)
    assert torch.allclose(ours, dense(query, key, value, around[:, :, of][:, :, :, of]), atol=TOLERANCE)


@pytest.mark.parametrize(("grid", "claims"), [((4, 16, 16), True), ((3, 16, 16), False)])
def test_sparsity_is_claimed_of_long_videos_alone(grid, claims):
    video = Video(grid)
    TileKernel("video_sparse_attn", video, (4, 4, 4), TopCubes(0.5))(*tensors(prod(grid)))
    told = video.told()
    assert told["visited_blocks"] * 2 == told["blocks"]
    assert told.get("left_out") == (0.5 if claims else None)


def test_a_mask_is_refused():
    with pytest.raises(PlanError, match="attention video_sparse_attn takes no masks"):
        video = Video((1, 2, 2))
        TileKernel("video_sparse_attn", video, (4, 4, 4), TopCubes(0.5))(*tensors(4), attn_mask=torch.ones(4, 4) > 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no mask file: Expecting property name"),
        ('{"0_0": [1, 1, 1]}', "is no mask file: not enough values to unpack"),
        ('{"0_0_0": [1, 0, 1]}', "is no mask file: a window of [1, 0, 1] tiles"),
        ("{}", "has no window for step 0, layer 0, head 0; the denoiser has 1 layers of 2 heads"),
        ('{"0_0_0": [1, 1, 1]}', "has no window for step 0, layer 0, head 1; the denoiser has 1 layers of 2 heads"),
        (None, "is no mask file: [Errno 2] No such file"),
    ],
)
def test_a_mask_file_of_another_denoiser_is_refused(text, message, tmp_path):
    file = tmp_path / "masks.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(PlanError) as error:
        tile_kernels("sliding_tile_attn", {"mask_strategy_file_path": str(file)}, Video(), [2])
    assert message in error.value.message


def test_more_steps_than_a_mask_file_has_are_refused(strategy):
    video = Video((2, 2, 2), step=0, steps=3)
    with pytest.raises(PlanError, match="has windows for 2 steps, and this item has 3"):
        TileKernel("sliding_tile_attn", video, SLIDING_TILE, SlidingTile(video, strategy, 0))(*tensors(8))

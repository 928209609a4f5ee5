"""Decoding in tiles and slices: refused where the VAE has no such thing, else exactly what diffusers' VAE does."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, AutoencoderTiny
from families.running import assemble_case, batch_for, run_ours

from difftool.acceleration import vae
from difftool.facts import Applied, Refused


class Plain:
    """A VAE without switches."""


def test_auto_decodes_at_once():
    assert vae.resolve("auto", slicing=False, kind=Plain) == Applied({"tiling": "none", "slicing": False})


def test_tiles_are_dealt_to_the_ranks_of_a_replica():
    at_once, tiled = {"tiling": "none", "slicing": False}, {"tiling": "on", "slicing": False}
    for asked, ranks, found in (
        (("auto", "auto"), 1, at_once),
        (("auto", "auto"), 2, {**at_once, "ranks": 2}),
        (("on", "auto"), 4, {**tiled, "ranks": 4}),
        (("auto", "tiled"), 2, {**tiled, "ranks": 2}),
        (("on", "none"), 2, tiled),
    ):
        tiling, parallel = asked
        values = {"slicing": False, "kind": AutoencoderKL, "parallel": parallel, "ranks": ranks}
        assert vae.resolve(tiling, **values) == Applied(found)


def test_tiles_of_a_class_that_deals_none_are_refused_by_name():
    values = {"slicing": False, "kind": AutoencoderTiny, "ranks": 2}
    reason = "stages.decoding.parallel: tiles of AutoencoderTiny cannot be dealt out exactly; use none"
    assert vae.resolve("on", **values, parallel="tiled") == Refused(reason)
    assert vae.resolve("on", **values) == Applied({"tiling": "on", "slicing": False})


@pytest.mark.parametrize(
    ("tiling", "slicing", "kind", "reason"),
    [
        ("on", False, Plain, "stages.decoding.tiling: Plain has none; leave it out"),
        ("none", True, Plain, "stages.decoding.slicing: Plain has none; leave it out"),
        (
            {"name": "on", "tile_sample_min_height": 64, "tile_sample_min_width": None},
            False,
            AutoencoderKL,
            "stages.decoding.tiling.tile_sample_min_height: AutoencoderKL does not take it; it takes no sizes",
        ),
        (
            {"name": "on", "tile_sample_min_num_frames": 8},
            False,
            AutoencoderKLWan,
            "stages.decoding.tiling.tile_sample_min_num_frames: AutoencoderKLWan does not take it; it takes "
            "tile_sample_min_height, tile_sample_min_width, tile_sample_stride_height, tile_sample_stride_width",
        ),
        (
            {"name": "auto", "tile_sample_min_width": 64},
            False,
            AutoencoderKLWan,
            "stages.decoding.tiling has tile_sample_min_width, but is auto; set its name to on",
        ),
    ],
)
def test_what_the_vae_does_not_take_is_refused_by_name(tiling, slicing, kind, reason):
    assert vae.resolve(tiling, slicing=slicing, kind=kind) == Refused(reason)


@pytest.fixture
def case():
    """A tiny checkpoint whose VAE decodes at once again afterwards."""
    assembled = assemble_case("flux1-dev")
    yield assembled
    assembled.components.vae.disable_tiling()
    assembled.components.vae.disable_slicing()


def test_tiles_are_those_of_diffusers(case):
    batch = batch_for(case, height=128, width=128, num_inference_steps=1)
    whole = run_ours(case, batch)[1]
    case.stock.vae.enable_tiling()
    expected = run_ours(case, batch)[1]
    case.stock.vae.disable_tiling()
    vae.apply(case.components.vae, vae.resolve("on", slicing=False, kind=AutoencoderKL))
    tiled = run_ours(case, batch)[1]
    assert torch.equal(tiled, expected) and not torch.equal(tiled, whole)


def test_the_sizes_of_tiles_reach_the_vae():
    module = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False])
    sizes = {"tile_sample_min_height": 96, "tile_sample_stride_width": 80}
    vae.apply(module, vae.resolve({"name": "on", **sizes}, slicing=True, kind=AutoencoderKLWan))
    assert (module.use_tiling, module.tile_sample_min_height, module.tile_sample_stride_width) == (True, 96, 80)
    assert module.use_slicing


def test_slices_change_rounding_alone(case):
    two = {"prompt": ["a red circle", "two cats"], "seeds": [1, 2], "num_inference_steps": 1}
    batch = batch_for(case, **two)
    at_once = run_ours(case, batch)[1]
    vae.apply(case.components.vae, vae.resolve("none", slicing=True, kind=AutoencoderKL))
    torch.testing.assert_close(run_ours(case, batch)[1], at_once, rtol=0, atol=1e-5)

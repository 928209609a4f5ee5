"""What the ranks of the test pool run: latents decoded in tiles by one rank and by several, compared."""

import copy

import torch
from families.running import assemble_case

from difftool.parallel import tiles
from difftool.parallel.mesh import Mesh

FRAMES, SIDES, TILE, STRIDE = 5, (11, 8), 4, 3  # of the latents: tiles of the last row and column are smaller


def compare(world, *, case, batch=1, frames=FRAMES, sides=SIDES):
    """Pixels of the same latents by all ranks, by one in tiles and by one at once, as JSON. A batch is sliced."""
    torch.set_num_threads(1)
    vae = copy.deepcopy(assemble_case(case).components.vae)
    latents, kwargs = latents_for(vae, batch, frames, sides)
    mesh, calls = Mesh({"ulysses": world.size}, world), []
    with torch.no_grad():
        whole = vae.decode(latents, return_dict=False, **kwargs)[0]
        in_tiles(vae)
        if batch > 1:
            vae.enable_slicing()
        vae.decoder.register_forward_hook(lambda module, given, made: calls.append(list(given[0].shape)))
        tiled = vae.decode(latents, return_dict=False, **kwargs)[0]
        alone = calls.copy()
        calls.clear()
        undo = tiles.apply(vae, mesh.replica)
        dealt = vae.decode(latents, return_dict=False, **kwargs)[0]
        own = calls.copy()
        undo()
        calls.clear()
        again = vae.decode(latents, return_dict=False, **kwargs)[0]
    return {
        "equal": torch.equal(dealt, tiled),
        "undone": torch.equal(again, tiled) and calls == alone,
        "untiled": float((tiled - whole).abs().max()),
        "alone": alone,
        "own": own,
        "traffic": mesh.replica.traffic.calls,
    }


def latents_for(vae, batch, frames, sides):
    """Random latents, of a video where it decodes any, and the arguments that go with them."""
    torch.manual_seed(3)
    config, size = vae.config, tuple(sides)
    if hasattr(vae, "clear_cache") or hasattr(vae, "use_framewise_decoding"):
        size = (frames, *size)
    latents = torch.randn(batch, config.get("latent_channels") or config.z_dim, *size)
    return latents, {"temb": torch.full((batch,), 0.05)} if config.get("timestep_conditioning") else {}


def in_tiles(vae):
    """Makes it decode in tiles of TILE latents, STRIDE apart, and of few frames where it cuts those too."""
    vae.enable_tiling()
    if hasattr(vae, "tile_latent_min_size"):
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        vae.tile_latent_min_size, vae.tile_sample_min_size = TILE, TILE * scale
        return
    for way in ("height", "width"):
        setattr(vae, f"tile_sample_min_{way}", TILE * vae.spatial_compression_ratio)
        setattr(vae, f"tile_sample_stride_{way}", STRIDE * vae.spatial_compression_ratio)
    if hasattr(vae, "use_framewise_decoding"):
        vae.use_framewise_decoding = True
        vae.tile_sample_min_num_frames = TILE * vae.temporal_compression_ratio
        vae.tile_sample_stride_num_frames = STRIDE * vae.temporal_compression_ratio

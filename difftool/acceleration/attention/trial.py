"""Whether a backend works here: a small forward, compared with torch's own attention."""

import math

import torch
from torch.nn.functional import cosine_similarity, scaled_dot_product_attention

from difftool.acceleration.attention import kernels, sparse, vmoba
from difftool.acceleration.attention.video import Video
from difftool.attention import BACKENDS, FLEX, SPECIALISED
from difftool.parallel.seam import Kernel
from difftool.platforms.doctor import FAILURES, reason

ALIKE = 0.95  # cosine with torch's own attention; 8-bit kernels reach 0.99, a broken one is near 0
GRID = (2, 8, 8)  # frames, rows and columns of the tokens
GAPPED, BESIDE = (5, 9, 10), 70  # those of a video that no tile divides, and the tokens of a text
APART = 0.03  # of FlexAttention's result; bf16 rounds by 0.005


def probe(name: str, device: torch.device, dtype: torch.dtype, head: int = 64) -> str:
    """Why a small forward fails there, or what is wrong with its result; "" where it works: a package may be there, and
    still have nothing for this device. A backend that leaves out parts of a video is told to leave out none.
    """
    shape = (1, 128, 4, head)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)]
    try:
        ours = _kernel(name)(*given)
        right = scaled_dot_product_attention(*(tensor.float().transpose(1, 2) for tensor in given)).transpose(1, 2)
        alike = cosine_similarity(ours.float().flatten(), right.flatten(), dim=0).item()
    except FAILURES as error:
        return reason(error)
    return "" if alike >= ALIKE else f"its result is wrong: cosine {alike:.2f} with torch's own"


def probe_kernel(name: str, device: torch.device, dtype: torch.dtype, head: int = 64) -> str:
    """Why the specialised kernel of a backend that leaves out parts of a video fails there, or what is wrong with its
    result; "" where it makes of a small video, with gaps and a text beside it, what FlexAttention makes of it.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (2, math.prod(GAPPED) + BESIDE, 2, head)
    given = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)]
    try:
        ours, right = (_sparse(name, kernel)(*given).float() for kernel in (SPECIALISED[name][0], FLEX))
        apart = ((ours - right).norm() / right.norm()).item()
    except FAILURES as error:
        return reason(error)
    return "" if apart <= APART else f"its result is wrong: it differs by {apart:.3f} of FlexAttention's"


def _kernel(name: str) -> Kernel:
    if not BACKENDS[name].tiles:
        return kernels.KERNELS[name]()
    if name == vmoba.VMOBA:
        return vmoba.MobaKernel(Video(GRID), (None, 3, 3), vmoba.Rule("topk", "query_head", 9, 1.0), 0)
    return sparse.TileKernel(name, Video(GRID), sparse.CUBE, sparse.TopCubes(0.0))


def _sparse(name: str, kernel: str) -> Kernel:
    """One that leaves out about half of a small video."""
    if name == vmoba.VMOBA:
        rule = vmoba.Rule("topk", "query_head", 3, 1.0)
        return vmoba.MobaKernel(Video(GAPPED), (2, 4, 4), rule, 0, vmoba.COMPUTE[kernel])
    tile = sparse.CUBE if name == "video_sparse_attn" else sparse.SLIDING_TILE
    return sparse.TileKernel(name, Video(GAPPED), tile, sparse.TopCubes(0.5), sparse.COMPUTE[kernel])

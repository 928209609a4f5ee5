"""What a cache knows of FLUX.1's denoiser."""

from difftool.acceleration.plans import CachePlan, Published

# source: TeaCache4FLUX of the TeaCache repository, for FLUX.1-dev
TEACACHE = Published((4.98651651e02, -2.83781631e02, 5.58554382e01, -3.82021401, 2.64230861e-01), 0.25)
CACHE = CachePlan(
    {"transformer_blocks": "text, image", "single_transformer_blocks": "text, image"},
    attention="attn",
    teacache=TEACACHE,
)

"""What a cache knows of LTX's denoiser."""

from difftool.acceleration.plans import CachePlan, Published

# source: TeaCache4LTX-Video of the TeaCache repository
TEACACHE = Published((2.14700694e01, -1.28016453e01, 2.31279151, 7.92487521e-01, 9.69274326e-03), 0.03)
CACHE = CachePlan({"transformer_blocks": "image"}, attention="attn1", teacache=TEACACHE)

"""What a cache knows of HunyuanVideo's denoiser."""

from difftool.acceleration.plans import CachePlan, Published

# source: TeaCache4HunyuanVideo of the TeaCache repository
TEACACHE = Published((7.33226126e02, -4.01131952e02, 6.75869174e01, -3.14987800, 9.61237896e-02), 0.1)
CACHE = CachePlan(
    {"transformer_blocks": "image, text", "single_transformer_blocks": "image, text"},
    attention="attn",
    teacache=TEACACHE,
)

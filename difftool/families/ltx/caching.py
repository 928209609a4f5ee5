"""What a cache knows of LTX's denoiser."""

from difftool.acceleration.plans import CachePlan

CACHE = CachePlan({"transformer_blocks": "image"}, attention="attn1")

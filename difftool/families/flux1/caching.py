"""What a cache knows of FLUX.1's denoiser."""

from difftool.acceleration.plans import CachePlan

CACHE = CachePlan({"transformer_blocks": "text, image", "single_transformer_blocks": "text, image"}, attention="attn")

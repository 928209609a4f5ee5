"""What a cache knows of Qwen-Image's denoiser."""

from difftool.acceleration.plans import CachePlan

CACHE = CachePlan({"transformer_blocks": "text, image"}, attention="attn")

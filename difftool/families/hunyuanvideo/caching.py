"""What a cache knows of HunyuanVideo's denoiser."""

from difftool.acceleration.plans import CachePlan

CACHE = CachePlan({"transformer_blocks": "image, text", "single_transformer_blocks": "image, text"}, attention="attn")

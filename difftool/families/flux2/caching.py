"""What a cache knows of FLUX.2's denoiser."""

from difftool.acceleration.plans import CachePlan

# the single blocks see text and image in one tensor
CACHE = CachePlan({"transformer_blocks": "text, image", "single_transformer_blocks": "image"}, attention="attn")

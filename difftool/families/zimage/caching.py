"""What a cache knows of Z-Image's denoiser."""

from difftool.acceleration.plans import CachePlan

CACHE = CachePlan({"layers": "image"}, attention="attention")

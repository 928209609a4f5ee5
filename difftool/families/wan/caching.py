"""What a cache knows of Wan's denoisers."""

from difftool.acceleration.plans import CachePlan

CACHE = CachePlan({"blocks": "image"}, attention="attn1")

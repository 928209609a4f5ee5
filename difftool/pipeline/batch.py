"""The typed state that moves through the stages, and what one guidance branch feeds the denoiser.

Legend: B samples, S latent tokens, L text tokens, D width, C channels, F frames, H and W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Branch:
    """One forward's conditioning: keyword arguments of the denoiser, and the steps it is active in."""

    name: str
    kwargs: Mapping[str, object]
    active: range


@dataclass(frozen=True)
class Batch:
    """One request's values. A stage returns a copy with the fields it declares in `writes`; each has one writer.

    The request is set by the caller. `text_encoding` writes `prompt_embeds`, `negative_prompt_embeds` (lists, one per
    encoder); `latent_preparation` `latents`, `raw_latent_shape`; `timestep_preparation` `scheduler`, `timesteps`
    (device tensor), `sigmas` (Python list) and `branches`; `denoising` `denoised`; `decoding` `pixels`.
    """

    prompt: list[str]
    height: int
    width: int
    num_inference_steps: int
    seeds: list[int]
    max_sequence_length: int
    negative_prompt: list[str] | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    schedule: Mapping[str, Any] = field(default_factory=dict)  # sampling.scheduler: name, flow_shift, sigmas, config
    extra: Mapping[str, Any] = field(default_factory=dict)

    prompt_embeds: list[Tensor] | None = None
    negative_prompt_embeds: list[Tensor] | None = None
    latents: Tensor | None = None
    raw_latent_shape: tuple[int, ...] | None = None
    scheduler: Any = None
    timesteps: Tensor | None = None
    sigmas: list[float] | None = None
    branches: tuple[Branch, ...] | None = None
    denoised: Tensor | None = None
    pixels: Tensor | None = None  # [B, C, H, W] or [B, C, F, H, W] in [0, 1]

    def generators(self) -> list[torch.Generator]:
        """One CPU generator a sample: a seed means the same noise on every device and layout."""
        return [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds]


REQUEST_FIELDS = frozenset(
    ("prompt", "height", "width", "num_inference_steps", "seeds", "max_sequence_length", "negative_prompt")
    + ("guidance_scale", "true_cfg_scale", "schedule", "extra")
)
STATE_FIELDS = frozenset(f.name for f in fields(Batch)) - REQUEST_FIELDS

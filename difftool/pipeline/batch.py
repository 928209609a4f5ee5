"""The typed state that moves through the stages, and what one guidance branch feeds the denoiser.

Legend: B samples, S latent tokens, L text tokens, D width, C channels, F frames, H and W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from difftool.media.condition import Picture

Embeds = list[Any]  # of tensors; where lengths differ by sample, of lists with a tensor for each


@dataclass(frozen=True)
class Branch:
    """One forward's conditioning: keyword arguments of the denoiser, and the steps it is active in."""

    name: str
    kwargs: Mapping[str, object]
    active: range

    @classmethod
    def joined(cls, branches: "Sequence[Branch]") -> "Branch":
        """One forward for all of them, in this order in the batch, active where all are: tensors are concatenated,
        lists put end to end, and what is neither has to be equal.
        """
        kwargs = {key: _join([branch.kwargs[key] for branch in branches]) for key in branches[0].kwargs}
        steps = [branch.active for branch in branches]
        active = range(max(each.start for each in steps), min(each.stop for each in steps))
        return cls("+".join(branch.name for branch in branches), kwargs, active)


def _join(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    if isinstance(values[0], list):
        return [entry for value in values for entry in value]
    assert all(value == values[0] for value in values), values
    return values[0]


@dataclass(frozen=True)
class Batch:
    """One request's values. A stage returns a copy with the fields it declares in `writes`; each has one writer.

    The request is set by the caller. `text_encoding` writes `prompt_embeds`, `negative_prompt_embeds` (lists, one per
    encoder); `image_encoding` `image_embeds`; `image_vae_encoding` `image_latents` (of the family's own kind);
    `latent_preparation` `latents`, `raw_latent_shape`; `timestep_preparation` `scheduler`, `timesteps` (device tensor),
    `times` (the same as Python numbers), `sigmas` (Python list) and `branches`; `denoising` `denoised`; `decoding`
    `pixels`.
    """

    prompt: list[str]
    height: int
    width: int
    num_inference_steps: int
    seeds: list[int]
    max_sequence_length: int | None = None  # None where the family ignores it
    negative_prompt: list[str] | None = None
    image: tuple[Picture, ...] = ()  # condition pictures, shared by the samples
    last_image: Picture | None = None
    num_frames: int | None = None
    fps: int | None = None
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    true_cfg_scale: float | None = None
    boundary_ratio: float | None = None
    schedule: Mapping[str, Any] = field(default_factory=dict)  # sampling.scheduler: name, flow_shift, sigmas, config
    extra: Mapping[str, Any] = field(default_factory=dict)

    prompt_embeds: Embeds | None = None
    negative_prompt_embeds: Embeds | None = None
    image_embeds: Embeds | None = None
    image_latents: Any = None
    latents: Tensor | None = None
    raw_latent_shape: tuple[int, ...] | None = None
    scheduler: Any = None
    timesteps: Tensor | None = None
    times: list[float] | None = None
    sigmas: list[float] | None = None
    branches: tuple[Branch, ...] | None = None
    denoised: Tensor | None = None
    pixels: Tensor | None = None  # [B, C, H, W] or [B, C, F, H, W] in [0, 1]

    def generators(self) -> list[torch.Generator]:
        """One CPU generator a sample: a seed means the same noise on every device and layout."""
        return [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds]


STATE_FIELDS = frozenset(
    ("prompt_embeds", "negative_prompt_embeds", "image_embeds", "image_latents", "latents", "raw_latent_shape")
    + ("scheduler", "timesteps", "times", "sigmas", "branches", "denoised", "pixels")
)
REQUEST_FIELDS = frozenset(f.name for f in fields(Batch)) - STATE_FIELDS

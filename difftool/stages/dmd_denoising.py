"""The denoising loop of models distilled by distribution matching (DMD), in a few fixed steps.

Source: `DmdDenoisingStage` and `pred_noise_to_pred_video` of FastVideo. Theirs goes through fp64 and keeps latents in
the denoiser's precision; here both stay in fp32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from difftool.pipeline.batch import Batch
from difftool.stages.denoising import DenoisingStage


@dataclass(frozen=True)
class DmdSchedule:
    """What a request's steps are at, in the place of a scheduler.

    `sigmas` [N] are the noise levels of its steps; `noises` the fresh noise that leads into each step but the first.
    """

    sigmas: Tensor
    noises: Sequence[Tensor]


def nearest_sigmas(steps: Sequence[int], *, shift: float) -> Tensor:
    """[N] levels that training had nearest to these times, of its 1000 shifted ones."""
    trained = FlowMatchEulerDiscreteScheduler(shift=shift)
    distances = trained.timesteps[None] - torch.tensor(steps)[:, None]
    return trained.sigmas[distances.abs().argmin(dim=1)]


class DmdDenoisingStage(DenoisingStage):
    """Writes `denoised`. Reads a DmdSchedule as the scheduler."""

    def move(self, batch: Batch, prediction: Tensor, latents: Tensor, i: int) -> Tensor:
        """The clean latents that a flow prediction means, and at all but the last step fresh noise over them."""
        sigmas = batch.sigmas
        clean = latents - sigmas[i] * prediction
        if i == len(sigmas) - 1:
            return clean
        return (1 - sigmas[i + 1]) * clean + sigmas[i + 1] * batch.scheduler.noises[i]

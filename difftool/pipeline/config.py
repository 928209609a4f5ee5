"""What a family answers: the callbacks of the standard stages. One subclass per family, without state.

Legend: B samples, S latent tokens, C channels, H and W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from difftool.components.loaded import Components
from difftool.facts import FamilyFacts
from difftool.pipeline.batch import Batch, Branch


class PipelineConfig(ABC):
    """The family's part of a run. Methods take the loaded components; the loop and the decode belong to the engine.

    `holder` is the diffusers class whose helper methods are used; `roles` names the modules of each stage role;
    `encoding_inputs` are the batch fields that `encode_prompt` reads besides the text it encodes.
    """

    facts: ClassVar[FamilyFacts]
    holder: ClassVar[str]
    roles: ClassVar[dict[str, tuple[str, ...]]]
    encoding_inputs: ClassVar[tuple[str, ...]] = ("max_sequence_length", "extra")

    @abstractmethod
    def stages(self) -> list[Any]:
        """The family's stages, in order."""

    def runs_negative_branch(self, batch: Batch) -> bool:
        """Whether this request has a second branch: its guidance key is above 1 and there is a negative prompt."""
        scale = getattr(batch, self.facts.second_branch)
        return scale is not None and scale > 1 and batch.negative_prompt is not None

    @abstractmethod
    def encode_prompt(
        self, components: Components, batch: Batch, device: torch.device, *, negative: bool
    ) -> list[Tensor]:
        """One tensor per text encoder, batch first, for the prompts or for the negative prompts."""

    @abstractmethod
    def prepare_latents(
        self, components: Components, batch: Batch, device: torch.device
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Initial noise in the denoiser's layout, drawn on the CPU, and the latent shape before packing."""

    @abstractmethod
    def prepare_timesteps(self, components: Components, batch: Batch, device: torch.device) -> tuple[Any, Tensor]:
        """A scheduler of this request's own and its timesteps, as a device tensor."""

    @abstractmethod
    def make_branches(self, components: Components, batch: Batch, device: torch.device) -> tuple[Branch, ...]:
        """Positive first. Everything that no step changes is computed here, once."""

    def loop_constants(self, components: Components, batch: Batch) -> AbstractContextManager[None]:
        """Holds values the denoiser would compute again at every step, for the time of the loop."""
        return nullcontext()

    def model_timesteps(self, timesteps: Tensor, latents: Tensor) -> Sequence[Tensor]:
        """What the denoiser is told of time, for all steps at once: [B] each."""
        return timesteps[:, None].expand(-1, latents.shape[0]).to(latents.dtype).unbind()

    def model_input(self, latents: Tensor, i: int) -> Tensor:
        """What the denoiser sees at step i."""
        return latents

    @abstractmethod
    def predict(self, components: Components, model_input: Tensor, time: Tensor, branch: Branch) -> Tensor:
        """One forward of one branch."""

    def combine(self, predictions: Sequence[Tensor], batch: Batch) -> Tensor:
        """The guided prediction. One branch: itself."""
        assert len(predictions) == 1, len(predictions)
        return predictions[0]

    def step(self, batch: Batch, prediction: Tensor, i: int, latents: Tensor) -> Tensor:
        """The scheduler's move from step i to i + 1."""
        return batch.scheduler.step(prediction, batch.timesteps[i], latents, return_dict=False)[0]

    @abstractmethod
    def prepare_decode(self, components: Components, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """Latents as the VAE takes them, and further arguments of its decode."""

    @abstractmethod
    def post_decode(self, components: Components, decoded: Tensor) -> Tensor:
        """The VAE's output -> pixels in [0, 1]."""

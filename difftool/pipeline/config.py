"""What a family answers: the callbacks of the standard stages. One subclass per pipeline class, without state.

Legend: B samples, S latent tokens, C channels, F frames, H and W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from difftool.acceleration.plans import CachePlan
from difftool.components.accounting import WeightSource
from difftool.components.loaded import Components
from difftool.facts import Configs, FamilyFacts, PipelineFacts
from difftool.parallel.plans import SequencePlan, TensorPlan
from difftool.pipeline.batch import Batch, Branch, Embeds


class PipelineConfig(ABC):
    """The family's part of a run. Methods take the loaded components; the loop and the decode belong to the engine.

    `pipeline_class` is the key of `facts.pipelines` it runs; `holder` the diffusers class whose helper methods are
    used, None where diffusers has none; `roles` names the modules of each stage role; `encoding_inputs` are the batch
    fields that `encode_prompt` reads besides the text it encodes. `joint` names the branches that share one batched
    forward, in their order in the batch; where it is empty, or any of them is not active, each branch is a forward of
    its own. `layer_names` are the names of the transformer's layers in the model's original code, which LoRA files may
    use, -> diffusers' layers.

    `sequence` is how the denoiser's tokens are dealt to ranks, `tensor` how its layers are; without it they cannot be.
    `cache` is what a cache of features knows of its blocks; without it there is none.

    `component_classes` are classes that the family has for components, which need no entry in model_index.json;
    `weight_sources` say where the weights of those lie, and under which names.
    """

    facts: ClassVar[FamilyFacts]
    pipeline_class: ClassVar[str]
    holder: ClassVar[str | None]
    roles: ClassVar[dict[str, tuple[str, ...]]]
    encoding_inputs: ClassVar[tuple[str, ...]] = ("max_sequence_length", "extra")
    joint: ClassVar[tuple[str, ...]] = ()
    component_classes: ClassVar[Mapping[str, type]] = {}
    weight_sources: ClassVar[tuple[WeightSource, ...]] = ()
    layer_names: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    sequence: ClassVar[SequencePlan | None] = None
    tensor: ClassVar[TensorPlan | None] = None
    cache: ClassVar[CachePlan | None] = None

    @property
    def pipeline(self) -> PipelineFacts:
        """The facts of the pipeline class it runs."""
        return self.facts.pipelines[self.pipeline_class]

    @abstractmethod
    def stages(self) -> list[Any]:
        """The family's stages, in order."""

    def configs(self, components: Components) -> Configs:
        """The loaded components' configs as facts read them."""
        modules = {name: getattr(components, name).config for name in ("transformer", "vae")}
        return {"index": components.holder.config, **modules}

    def runs_negative_branch(self, batch: Batch) -> bool:
        """Whether this request has a second branch: its guidance key asks for one and there is a negative prompt."""
        key = self.facts.second_branch
        if key is None or "negative_prompt" not in {*self.facts.sampling, *self.pipeline.sampling}:
            return False
        return self.facts.guides(getattr(batch, key)) and batch.negative_prompt is not None

    def video_grid(self, transformer: nn.Module, given: Mapping[str, Any]) -> tuple[int, int, int]:
        """Frames, rows and columns of the tokens of a forward with these arguments; of `facts.video_tokens` alone."""
        raise AssertionError(f"{self.facts.name} has no tokens of a video")

    @abstractmethod
    def encode_prompt(self, components: Components, batch: Batch, device: torch.device, *, negative: bool) -> Embeds:
        """One entry per text encoder (or mask), batch first, for the prompts or for the negative prompts."""

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

    def text_tokens(self, branch: Branch) -> Sequence[int]:
        """Of each sample of a branch; nothing where it is not known, and taken for the longest text of the request."""
        texts = branch.kwargs.get("encoder_hidden_states")
        return (texts.shape[1],) * len(texts) if isinstance(texts, Tensor) else ()

    def loop_constants(self, components: Components, batch: Batch) -> AbstractContextManager[None]:
        """Holds values the denoiser would compute again at every step, for the time of the loop."""
        return nullcontext()

    def model_timesteps(self, batch: Batch, latents: Tensor) -> Sequence[Tensor]:
        """What the denoiser is told of time, for all steps at once: [B] each, or [B, S] with a time for every token."""
        return batch.timesteps[:, None].expand(-1, latents.shape[0]).to(latents.dtype).unbind()

    def model_input(self, batch: Batch, latents: Tensor, i: int) -> Tensor:
        """What the denoiser sees at step i."""
        return latents

    def select_transformer(self, components: Components, batch: Batch, i: int) -> nn.Module:
        """The denoiser of step i."""
        transformer: nn.Module = components.transformer
        return transformer

    @abstractmethod
    def predict(self, transformer: nn.Module, model_input: Tensor, time: Tensor, branch: Branch) -> Tensor:
        """One forward of one branch, or of several joined in one batch."""

    def guidance_at(self, batch: Batch, i: int) -> float:
        """The scale of classifier-free guidance at step i: the request's value of the `second_branch` key."""
        assert self.facts.second_branch is not None, self.facts.name
        scale: float = getattr(batch, self.facts.second_branch)
        return scale

    def combine(self, predictions: Mapping[str, Tensor], batch: Batch, i: int) -> Tensor:
        """The guided prediction of step i from those of the active branches, by name: the positive one alone, or
        negative + scale * (positive - negative). Source: Ho and Salimans 2022, as diffusers writes it.
        """
        if "negative" not in predictions:
            assert len(predictions) == 1, sorted(predictions)
            return predictions["positive"]
        positive, negative = predictions["positive"], predictions["negative"]
        return negative + self.guidance_at(batch, i) * (positive - negative)

    def step(self, batch: Batch, prediction: Tensor, i: int, latents: Tensor) -> Tensor:
        """The scheduler's move from step i to i + 1."""
        return batch.scheduler.step(prediction, batch.timesteps[i], latents, return_dict=False)[0]

    def after_loop(self, batch: Batch, latents: Tensor) -> Tensor:
        """The result of the loop from the latents after the last step."""
        return latents

    @abstractmethod
    def prepare_decode(self, components: Components, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """Latents as the VAE takes them, and further arguments of its decode."""

    @abstractmethod
    def post_decode(self, components: Components, decoded: Tensor) -> Tensor:
        """The VAE's output -> pixels in [0, 1], [B, C, H, W] or [B, C, F, H, W]."""


class PictureLatents(PipelineConfig):
    """A pipeline that takes condition pictures as latents, from an ImageVAEEncodingStage."""

    @abstractmethod
    def encode_image_latents(self, components: Components, batch: Batch, device: torch.device) -> Any:
        """The pictures as latents: the family's own kind of value, read by its other callbacks."""


class PictureEmbeds(PipelineConfig):
    """A pipeline whose denoiser attends to condition pictures, from an ImageEncodingStage."""

    @abstractmethod
    def encode_image(self, components: Components, batch: Batch, device: torch.device) -> Embeds:
        """The pictures as the denoiser's cross-attention sees them."""

"""The `sampling` section of a recipe: what to make. null means the family's or the checkpoint's default."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, SerializerFunctionWrapHandler, Tag, model_serializer, model_validator

from difftool.recipe.fields import (
    AutoPositive,
    Count,
    Fraction,
    Free,
    Many,
    NotNegative,
    OneOrMany,
    Path,
    Section,
    Shorthand,
    Text,
    problem,
    worded,
)

Seed = Annotated[
    Annotated[int, Field(ge=0, lt=2**63)] | Literal["random"], worded("a whole number of at least 0, or random")
]


class Scheduler(Shorthand):
    """The noise schedule. A plain text is its name."""

    short = "name"
    name: Text = Field(default="auto", description="auto, or a scheduler class of diffusers")
    flow_shift: AutoPositive = Field(default="auto", description="time shift of flow matching")
    sigmas: Many[NotNegative] | None = Field(default=None, description="noise levels, one per step")
    config: Free = Field(default_factory=dict, description="further settings by the scheduler's own names")


class SamplingValues(Section):
    """The keys that a request and one entry of `sampling.prompts` share."""

    prompt: OneOrMany[str] | None = Field(default=None, description="a text, or a list of texts")
    negative_prompt: str | None = Field(default=None, description="what to steer away from")
    image: OneOrMany[Path] | None = Field(default=None, description="input pictures of every prompt")
    mask: Path | None = Field(default=None, description="where to edit: white is repainted")
    last_image: Path | None = Field(default=None, description="last frame of a video")
    height: Count | None = Field(default=None, description="pixels")
    width: Count | None = Field(default=None, description="pixels")
    num_frames: Count | None = Field(default=None, description="frames of a video")
    fps: Count | None = Field(default=None, description="frames per second of the saved video")
    num_inference_steps: Count | None = Field(default=None, description="denoising steps")
    guidance_scale: NotNegative | None = Field(default=None, description="refused where the family ignores it")
    guidance_scale_2: NotNegative | None = Field(default=None, description="of the second transformer")
    true_cfg_scale: NotNegative | None = Field(default=None, description="real guidance beside an embedded one")
    max_sequence_length: Count | None = Field(default=None, description="prompt tokens kept")
    scheduler: Scheduler = Field(default_factory=Scheduler, description="the noise schedule")
    boundary_ratio: Fraction | None = Field(default=None, description="where the second transformer takes over")
    extra: Free = Field(default_factory=dict, description="further arguments of the family, by their diffusers names")
    seed: Seed = Field(default=42, description="or random, drawn and recorded; counts up over items and outputs")
    num_outputs_per_prompt: Count = Field(default=1, description="outputs of each prompt")


class PromptEntry(SamplingValues):
    """One entry of `sampling.prompts`: a prompt and the keys in which it differs. Only set keys are written back."""

    id: Text | None = Field(default=None, description="names the outputs; unique")
    prompt: str = Field(description="the prompt")

    @model_serializer(mode="wrap")
    def _write_only_what_was_set(self, write: SerializerFunctionWrapHandler) -> object:
        mapping = write(self)
        assert isinstance(mapping, Mapping), mapping
        return {key: value for key, value in mapping.items() if key in self.model_fields_set}


class PromptsFile(Section):
    """Prompts read from a file."""

    file: Path = Field(description="x.txt (a prompt a line), x.jsonl (a mapping a line), or - for standard input")


def _list_or_file(value: object) -> str:
    return "file" if isinstance(value, (Mapping, PromptsFile)) else "list"


Prompts = Annotated[
    Annotated[Many[PromptEntry], Field(min_length=1), Tag("list")] | Annotated[PromptsFile, Tag("file")],
    Discriminator(_list_or_file),
]


class Sampling(SamplingValues):
    """What to make."""

    alternatives: ClassVar[tuple[str, ...]] = ("prompt", "prompts")
    prompts: Prompts | None = Field(default=None, description="list of mappings, or {file: x.txt | x.jsonl | -}")

    @model_validator(mode="after")
    def _one_source_of_prompts(self) -> "Sampling":
        if self.prompt is not None and self.prompts is not None:
            raise problem("give prompt or prompts, not both")
        return self

"""Plain types that every room may import: tasks, mesh axes, the outcome of a transform, and a family's facts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Task = Literal["t2i", "ti2i", "t2v", "i2v", "ti2v", "t2a"]
AXES = ("dp", "cfg", "ring", "ulysses", "tp")  # slowest to fastest
STAGE_NAMES = (
    "input_validation",
    "text_encoding",
    "image_encoding",
    "image_vae_encoding",
    "latent_preparation",
    "timestep_preparation",
    "denoising",
    "decoding",
)
TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # recipe name -> attribute of torch


@dataclass(frozen=True)
class Applied:
    """A transform that holds for this run, with what was done in words and numbers."""

    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """A transform that cannot hold, and why."""

    reason: str


@dataclass(frozen=True)
class CheckpointFacts:
    """What is known of one published checkpoint without its files.

    `transformer` holds the keys of its `transformer/config.json` that planning reads; `sampling` what differs from the
    family's defaults.
    """

    hub_id: str
    pipeline_class: str
    transformer: Mapping[str, object]
    sampling: Mapping[str, object] = field(default_factory=dict)
    license: str = ""


@dataclass(frozen=True)
class FamilyFacts:
    """What planning knows of a family, torch-free.

    `sampling` are defaults by recipe key; a key absent from it is one the family ignores, and is refused.
    `guidance` maps a guidance key to the transformer config flag it needs (None: always understood).
    `size_multiple` in pixels; `num_frames` is (step, offset): a valid count is step * k + offset, None for pictures.
    """

    name: str
    title: str
    model: str  # "module:Class" of the PipelineConfig, imported by the worker only
    pipeline_classes: Mapping[str, Task]
    checkpoints: tuple[CheckpointFacts, ...]
    sampling: Mapping[str, object]
    extra: Mapping[str, type]
    guidance: Mapping[str, str | None]
    second_branch: str  # the guidance key that, above 1, runs a negative branch
    components: tuple[str, ...]  # required keys of model_index.json
    heads_key: str  # transformer config key holding the number of attention heads
    size_multiple: int
    num_frames: tuple[int, int] | None
    max_sequence_length: int

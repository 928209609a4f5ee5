"""Plain types that every room may import: tasks, mesh axes, the outcome of a transform, and a family's facts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Task = Literal["t2i", "ti2i", "t2v", "i2v", "ti2v", "t2a"]
Makes = Literal["image", "video", "audio"]
# what is known of a checkpoint's files: "index" (model_index.json), "transformer", "vae" -> the keys of that config
Configs = Mapping[str, Mapping[str, Any]]
AXES = ("dp", "cfg", "ring", "ulysses", "tp")  # slowest to fastest
SEQUENCE = ("ring", "ulysses")
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
NOT = "not "  # before a config flag of `needs`: one that must not be set
TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # recipe name -> attribute of torch
ELEMENT = {"fp32": 4, "bf16": 2, "fp16": 2}  # bytes of a number


@dataclass(frozen=True)
class Applied:
    """A transform that holds for this run, with what was done in words and numbers."""

    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """A transform that cannot hold, and why."""

    reason: str


@dataclass(frozen=True)
class TeaCacheFit:
    """TeaCache's polynomial, highest power first, and the threshold that its authors give for the smallest loss."""

    coefficients: tuple[float, ...]
    threshold: float


@dataclass(frozen=True)
class CheckpointFacts:
    """What is known of one published checkpoint without its files.

    `transformer`, `vae` and `index` hold the keys of `transformer/config.json`, `vae/config.json` and
    `model_index.json` that planning reads; `sampling` what differs from its pipeline's defaults.
    """

    hub_id: str
    pipeline_class: str
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any] = field(default_factory=dict)
    index: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, object] = field(default_factory=dict)
    license: str = ""

    @property
    def configs(self) -> Configs:
        return {"index": self.index, "transformer": self.transformer, "vae": self.vae}


@dataclass(frozen=True)
class PipelineFacts:
    """One pipeline class of a family: what it makes of what, and what it is made of.

    `model` is the "module:Class" of its PipelineConfig, imported by the worker only. `components` are the keys of
    model_index.json it cannot do without, `optional` those it uses where a checkpoint has them, `tokenizers` those
    that may be processors of text and pictures, of which it only needs the tokenizer. `images` is how many condition
    pictures it takes, at least and at most; `images_need` names the config flag ("index.expand_timesteps") without
    which a checkpoint takes none; `refuses_image` says what is wrong with one of a width and height, or "".
    `fits_image`: without a height and width the first picture's shape decides, at the default number of pixels, or by
    the reference's own rule: a function from its width and height to those of the result; `fitted_image` is -1 where
    it is the last picture's. `fits_one_side`: with one of both given, the other is still the picture's by that rule, as
    `height or calculated_height` in diffusers; elsewhere it is the default. `sampling` and `extra` add to the family's.
    `packages` it imports beyond difftool's own, each with the line that installs it. `teacache` is what is published
    for it, None where nothing is that was fitted to what its `CachePlan` judges by.
    """

    makes: Makes
    model: str
    components: tuple[str, ...]
    optional: tuple[str, ...] = ()
    tokenizers: tuple[str, ...] = ()
    images: tuple[int, int] = (0, 0)
    images_need: str | None = None
    last_image: bool = False
    fits_image: bool | Callable[[int, int], tuple[int, int]] = False
    fitted_image: int = 0
    fits_one_side: bool = False
    refuses_image: Callable[[int, int], str] | None = None
    sampling: Mapping[str, object] = field(default_factory=dict)
    extra: Mapping[str, type] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    teacache: TeaCacheFit | None = None

    def image_counts(self, configs: Configs) -> tuple[int, int]:
        """How many condition pictures a checkpoint of these configs takes, at least and at most."""
        return self.images if self.images_need is None or config_value(configs, self.images_need) else (0, 0)

    def task(self, configs: Configs) -> Task:
        """What a checkpoint of these configs is used for."""
        least, most = self.image_counts(configs)
        if self.makes == "audio":
            return "t2a"
        if self.makes == "image":
            return "ti2i" if most else "t2i"
        return "i2v" if least else "ti2v" if most else "t2v"


@dataclass(frozen=True)
class FamilyFacts:
    """What planning knows of a family, torch-free.

    `sampling` are defaults by recipe key; a key in neither it nor the pipeline's own is one the family ignores, and is
    refused. `needs` maps a sampling key to the config flag ("transformer.guidance_embeds", or "not index.is_distilled")
    without which a checkpoint ignores it, `configured` one to the config value that is a checkpoint's default.
    `guidance` are the guidance keys; the one that runs a negative branch above `second_branch_above` is
    `second_branch`, None where there is never one; a pipeline that knows no `negative_prompt` has none either.
    `size_multiple` in pixels, or a function of the checkpoint's configs. `num_frames` is (step, offset): a valid count
    is step * k + offset; None for pictures.
    `third_branch` is the key of `extra` that asks for one more. `axes` are those that its denoiser can be split along.
    `keep_fp32` names stages ("decoding") whose modules `auto` precision leaves in fp32 and that are refused in fp16,
    each with the reason.
    `refused` are published checkpoints that cannot be run, with why.
    `guided_extra` are the keys of `extra` that only a second branch reads. `refuses` finds what else of a request's
    values a checkpoint of these configs would ignore or cannot do: recipe key -> what is wrong, with the way out.
    `cost` is the "module:NAME" of the denoiser's anatomy.Cost; without it nothing is predicted of a run.
    `attention` are the roles of the attention modules in the denoiser's blocks: "self" sees all its tokens, "cross" is
    beside it and sees others; `masked` those of them that leave keys out, always or in a forward of joined branches.
    `video_tokens`: self-attention's tokens begin with those of a video, whose grid the PipelineConfig tells.
    """

    name: str
    title: str
    pipelines: Mapping[str, PipelineFacts]  # by the `_class_name` of model_index.json
    checkpoints: tuple[CheckpointFacts, ...]
    sampling: Mapping[str, object]
    guidance: tuple[str, ...]
    second_branch: str | None
    heads_key: str  # transformer config key holding the number of attention heads
    size_multiple: int | Callable[[Configs], int]
    num_frames: tuple[int, int] | None
    max_sequence_length: int
    extra: Mapping[str, type] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    configured: Mapping[str, str] = field(default_factory=dict)
    takes_sigmas: bool = True  # whether its scheduler can be given noise levels
    second_branch_above: float = 1.0
    third_branch: str | None = None
    axes: tuple[str, ...] = ("dp", "cfg")
    keep_fp32: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    guided_extra: tuple[str, ...] = ()
    refuses: Callable[[Mapping[str, Any], Configs], Mapping[str, str]] | None = None
    cost: str | None = None
    attention: tuple[str, ...] = ("self",)
    masked: Mapping[str, Literal["always", "joined"]] = field(default_factory=dict)
    video_tokens: bool = False

    def head_width(self, configs: Configs) -> int | None:
        """Of an attention head of a denoiser of these configs, where that is known."""
        config = configs["transformer"]
        width, heads = config.get("dim"), config.get(self.heads_key)
        said: int | None = config.get("attention_head_dim")
        return said if said or not (width and heads) else width // heads

    def multiple(self, configs: Configs) -> int:
        """What height and width must be multiples of, in pixels, for a checkpoint of these configs."""
        return self.size_multiple if isinstance(self.size_multiple, int) else self.size_multiple(configs)

    def configured_sampling(self, configs: Configs) -> dict[str, object]:
        """The sampling defaults that a checkpoint's configs hold."""
        found = {key: config_value(configs, name) for key, name in self.configured.items()}
        return {key: value for key, value in found.items() if value is not None}

    def branches(self, values: Mapping[str, Any]) -> int:
        """How many guidance branches a request of these sampling values runs."""
        if not self.guides(values.get(self.second_branch or "")) or values.get("negative_prompt") is None:
            return 1
        return 2 + bool((values.get("extra") or {}).get(self.third_branch))

    def guides(self, scale: object) -> bool:
        """Whether a value of the `second_branch` key asks for a negative branch."""
        return isinstance(scale, int | float) and scale > self.second_branch_above

    def understands(self, configs: Configs, key: str) -> bool:
        """Whether a sampling key means something to a checkpoint of these configs."""
        if key not in self.needs:
            return True
        flag = self.needs[key].removeprefix(NOT)
        return bool(config_value(configs, flag)) == (flag == self.needs[key])


def config_value(configs: Configs, name: str) -> Any:
    """The value of "transformer.guidance_embeds"; None where it is not set."""
    part, _, key = name.partition(".")
    return configs.get(part, {}).get(key)

"""The `stages` section of a recipe: precision, attention, quantization, compile, tiling and offload of each stage."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from difftool.attention import FLEX, SPECIALISED, listed
from difftool.recipe.fields import Aliases, Choice, Count, Many, OneOrMany, Path, Section, Text, Whole, problem
from difftool.recipe.moba import MobaConfig

Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"], Aliases((("float32", "fp32"), ("bfloat16", "bf16"), ("float16", "fp16")))
]
Compile = Literal["auto", "none", "regional", "full"]
AttentionName = Annotated[
    Literal[
        "auto",
        "fa",
        "fa2",
        "fa3",
        "fa4",
        "torch_sdpa",
        "cudnn",
        "sage_attn",
        "sage_attn_3",
        "flex",
        "aiter",
        "sliding_tile_attn",
        "video_sparse_attn",
        "vmoba_attn",
    ],
    Aliases(
        (
            ("native", "torch_sdpa"),
            ("sdpa", "torch_sdpa"),
            ("flash_attn", "fa"),
            ("_native_cudnn", "cudnn"),
            ("flash", "fa2"),
            ("flash_hub", "fa2"),
            ("_flash_3", "fa3"),
            ("_flash_3_hub", "fa3"),
            ("sage", "sage_attn"),
        )
    ),
]

# what a backend that leaves out parts of a video must be told
SPARSE_OPTIONS = {
    "mask_strategy_file_path": ("sliding_tile_attn", "a JSON file of windows"),
    "sparsity": ("video_sparse_attn", "the share that is left out, such as 0.5"),
    "moba_config": ("vmoba_attn", "with temporal_chunk_size, spatial_chunk_size and st_chunk_size"),
}


class AttentionOptions(Choice):
    """What some attention backends are told beside their name."""

    mask_strategy_file_path: Path | None = Field(default=None, description="mask file, for sliding_tile_attn only")
    sparsity: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="share of the attention left out, for video_sparse_attn only"
    )
    moba_config: MobaConfig | None = Field(default=None, description="chunks and their choice, for vmoba_attn only")
    kernel: Literal["auto", "flex", "fastvideo", "varlen"] | None = Field(
        default=None, description="what computes a backend that leaves out parts of a video; null is auto"
    )

    @model_validator(mode="after")
    def _options_belong_to_the_name(self) -> "AttentionOptions":
        name = getattr(self, "name", None)
        for option, (owner, what) in SPARSE_OPTIONS.items():
            given = getattr(self, option) is not None
            if given and name != owner:
                raise problem(f"{option} is an option of {owner} only")
            if not given and name == owner:
                raise problem(f"{owner} needs {option}, {what}")
        if self.kernel is not None and name not in SPECIALISED:
            raise problem(f"kernel is an option of {listed(tuple(SPECIALISED))} only")
        if self.kernel not in (None, "auto", FLEX) and self.kernel != (own := SPECIALISED[str(name)][0]):
            raise problem(f"kernel: {self.kernel} does not compute {name}; use auto, {FLEX} or {own}")
        return self


class AttentionChoice(AttentionOptions):
    """An attention backend with its options."""

    name: AttentionName = Field(default="auto", description="backend; diffusers' names are understood too")


class ComponentAttention(AttentionOptions):
    """The attention backend of one component, as a whole or apart for self- and cross-attention."""

    name: AttentionName | None = Field(default=None, description="backend; null is as everywhere")
    self_: AttentionChoice | None = Field(default=None, alias="self", description="self-attention, if it differs")
    cross: AttentionChoice | None = Field(default=None, description="cross-attention, if it differs")


class Attention(AttentionChoice):
    """The attention backend of the denoiser: as a whole, apart for self- and cross-attention, and for each of several
    denoisers.
    """

    self_: AttentionChoice | None = Field(default=None, alias="self", description="self-attention, if it differs")
    cross: AttentionChoice | None = Field(default=None, description="cross-attention, if it differs")
    components: dict[str, ComponentAttention] = Field(
        default_factory=dict, description="where a component differs, for example transformer_2"
    )


class Quantization(Choice):
    """Weights of eight bits in the blocks of a model. Lossy, so never chosen by `auto`."""

    name: Literal["none", "fp8", "int8"] = Field(default="none", description="number format")
    activations: Literal["dynamic", "none"] = Field(
        default="dynamic", description="dynamic multiplies in the format too, with scales made at every forward"
    )
    granularity: Literal["per_row", "per_tensor"] = Field(default="per_row", description="what shares one scale")
    keep_first_blocks: Whole = Field(default=0, description="blocks left in full precision at the start")
    keep_last_blocks: Whole = Field(default=0, description="blocks left in full precision at the end")
    exclude: Many[Text] = Field(default=(), description="module name patterns left in full precision")

    @model_validator(mode="after")
    def _options_need_a_format(self) -> "Quantization":
        for key in ("activations", "granularity", "keep_first_blocks", "keep_last_blocks", "exclude"):
            if self.name == "none" and getattr(self, key) != type(self).model_fields[key].default:
                raise problem(f"{key} is an option of fp8 and int8 only")
        return self


class Offload(Choice):
    """Where a stage's weights wait while it does not run."""

    name: Literal["auto", "none", "after_use", "module", "layerwise"] = Field(
        default="auto", description="none keeps them on the device; layerwise streams them block by block"
    )
    prefetch: Whole | None = Field(default=None, description="blocks fetched ahead, for layerwise only; null = 1")
    resident_blocks: Whole | None = Field(
        default=None, description="blocks that stay on the device, for layerwise only; null = 0"
    )

    @model_validator(mode="after")
    def _options_need_layerwise(self) -> "Offload":
        for key in ("prefetch", "resident_blocks"):
            if getattr(self, key) is not None and self.name != "layerwise":
                raise problem(f"{key} is an option of layerwise only")
        return self


class Tiling(Choice):
    """Decoding in overlapping tiles: less memory, not bit-equal to decoding at once."""

    words: ClassVar = {True: "on", False: "none"}
    name: Literal["auto", "none", "on"] = Field(default="auto", description="true and false stand for on and none")
    tile_sample_min_height: Count | None = Field(default=None, description="tile height in pixels; null = VAE default")
    tile_sample_min_width: Count | None = Field(default=None, description="tile width in pixels; null = VAE default")
    tile_sample_min_num_frames: Count | None = Field(default=None, description="frames per tile; null = VAE default")
    tile_sample_stride_height: Count | None = Field(default=None, description="pixels between tiles, down")
    tile_sample_stride_width: Count | None = Field(default=None, description="pixels between tiles, across")
    tile_sample_stride_num_frames: Count | None = Field(default=None, description="frames between tiles")


class TextEncoding(Section):
    """Prompt to embeddings."""

    precision: OneOrMany[Precision] = Field(default="auto", description="one, or a list with one per text encoder")
    offload: Offload = Field(default_factory=Offload, description="where the encoders wait")
    quantization: Quantization = Field(default_factory=Quantization, description="of the encoders")
    compile: Compile = Field(default="none", description="torch.compile of the encoders")
    tp: Count = Field(default=1, description="tensor-parallel ranks of the encoders")
    attention: Literal["auto", "torch_sdpa", "fa2", "fa3", "flex"] = Field(
        default="auto", description="attention of the encoders; auto is what transformers chooses"
    )


class ImageEncoding(Section):
    """Condition pictures to embeddings."""

    precision: Precision = Field(default="auto", description="of the image encoder")
    offload: Offload = Field(default_factory=Offload, description="where the image encoder waits")


class Denoising(Section):
    """The denoising loop: nearly all of the time."""

    precision: Precision = Field(default="auto", description="of the transformer")
    attention: Attention = Field(default_factory=Attention, description="attention backend")
    quantization: Quantization = Field(default_factory=Quantization, description="of the transformer")
    compile: Compile = Field(default="auto", description="regional compiles one block once, full the whole transformer")
    offload: Offload = Field(default_factory=Offload, description="where the transformer waits")
    kernels: Literal["auto", "none"] = Field(
        default="auto", description="difftool's own fused kernels, of which there are none yet"
    )


class Decoding(Section):
    """Latents to pixels or sound."""

    precision: Precision = Field(default="auto", description="of the VAE")
    tiling: Tiling = Field(default_factory=Tiling, description="decode in tiles")
    slicing: bool = Field(default=False, description="decode one picture of a batch at a time")
    parallel: Literal["auto", "none", "tiled"] = Field(default="auto", description="tiled deals the tiles to all ranks")
    offload: Offload = Field(default_factory=Offload, description="where the VAE waits")
    compile: Compile = Field(default="none", description="torch.compile of the VAE")

    @model_validator(mode="after")
    def _sizes_need_tiles(self) -> "Decoding":
        sizes = [key for key in Tiling.model_fields if key != "name" and getattr(self.tiling, key) is not None]
        on = self.tiling.name == "on" or (self.tiling.name == "auto" and self.parallel == "tiled")
        if sizes and not on:
            raise problem(
                f"tiling has {' and '.join(sizes)}, and its name is {self.tiling.name}; set that to on (--vae-tiling)"
            )
        return self

    @model_validator(mode="after")
    def _a_decoder_is_no_row_of_blocks(self) -> "Decoding":
        if self.offload.name == "layerwise":
            raise problem("offload=layerwise streams blocks that follow each other, which a VAE has not; use after_use")
        return self


class Stages(Section):
    """Settings live on the stage that pays for them; the order of the stages is the family's own."""

    text_encoding: TextEncoding = Field(default_factory=TextEncoding, description="prompt to embeddings")
    image_encoding: ImageEncoding = Field(default_factory=ImageEncoding, description="condition pictures to embeddings")
    denoising: Denoising = Field(default_factory=Denoising, description="the denoising loop")
    decoding: Decoding = Field(default_factory=Decoding, description="latents to pixels or sound")

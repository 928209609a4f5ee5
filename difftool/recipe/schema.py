"""The recipe vocabulary: every key with its type, range, default and description. Defaults live here and only here."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from difftool.recipe.fields import (
    Aliases,
    AutoCount,
    AutoNotNegative,
    AutoNumbers,
    Count,
    Fraction,
    Free,
    Many,
    NotNegative,
    Path,
    PathOrName,
    Section,
    Shorthand,
    Size,
    Text,
    Whole,
    parse_bytes,
    problem,
    worded,
)
from difftool.recipe.running import Launch, Metrics, Output, Perf, Quality, Reference, Serve, Sweep
from difftool.recipe.sampling import PromptEntry, PromptsFile, Sampling, Scheduler
from difftool.recipe.stages import (
    Attention,
    AttentionChoice,
    Decoding,
    Denoising,
    ImageEncoding,
    Offload,
    Quantization,
    Stages,
    TextEncoding,
    Tiling,
)

__all__ = [
    "Attention",
    "AttentionChoice",
    "CacheSpec",
    "ComponentSpec",
    "Decoding",
    "Denoising",
    "ImageEncoding",
    "Launch",
    "LoraSpec",
    "MemorySpec",
    "Metrics",
    "ModelSpec",
    "Offload",
    "Output",
    "ParallelSpec",
    "Perf",
    "PromptEntry",
    "PromptsFile",
    "Quality",
    "Quantization",
    "Recipe",
    "Reference",
    "Sampling",
    "Scheduler",
    "Scm",
    "Serve",
    "Stages",
    "Sweep",
    "TaylorSeer",
    "TeaCache",
    "TextEncoding",
    "Tiling",
    "json_schema",
    "parse_bytes",
]


class LoraSpec(Shorthand):
    """A LoRA adapter. A plain text is its path."""

    short = "path"
    path: PathOrName = Field(description="file, folder, hub id, org/repo/file.safetensors, or builtin:NAME")
    weight_name: Text | None = Field(default=None, description="file inside the folder or hub repository")
    revision: Text | None = Field(default=None, description="commit of the hub repository")
    nickname: Text | None = Field(default=None, description="name in listings; null = from the path")
    target: Literal["all", "transformer", "transformer_2", "critic"] = Field(
        default="all", description="which transformer; all: its text encoders too"
    )
    strength: float = Field(default=1.0, description="factor on the adapter's change; may be negative")
    min_match: Fraction = Field(default=0.95, description="share of the adapter's weights that must find their layer")


class ComponentSpec(Shorthand):
    """Other weights for one component. A plain text is its path."""

    short = "path"
    path: PathOrName = Field(description="folder, hub id, org/repo/folder, or .safetensors file")
    revision: Text | None = Field(default=None, description="commit of the hub repository")


class ModelSpec(Shorthand):
    """Which weights. A plain text is the path."""

    short = "path"
    path: PathOrName = Field(description="hub id, local folder, single .safetensors file, or builtin:NAME")
    id: Text | None = Field(default=None, description="hub id whose family and defaults apply, for a renamed folder")
    revision: Text | None = Field(default=None, description="commit of the hub repository; a missing one is noted")
    backend: Annotated[Literal["auto", "native", "diffusers"], Aliases((("sglang", "native"),))] = Field(
        default="auto", description="native refuses a model without a family of its own; sglang means native"
    )
    components: dict[str, ComponentSpec] = Field(default_factory=dict, description="other weights, for example of vae")
    lora: Many[LoraSpec] = Field(default=(), description="adapters, merged in this order")
    code: Path | None = Field(default=None, description="folder of an out-of-tree family")
    diffusers_kwargs: Free = Field(default_factory=dict, description="pipeline arguments, for backend: diffusers")
    trust_remote_code: bool = Field(default=False, description="run code from the hub; needs a pinned revision")

    @model_validator(mode="after")
    def _diffusers_kwargs_need_their_backend(self) -> "ModelSpec":
        if self.diffusers_kwargs and self.backend != "diffusers":
            raise problem(f"diffusers_kwargs need backend: diffusers, and it is {self.backend}")
        return self


class ParallelSpec(Section):
    """Ranks along each axis; their product is num_gpus. auto degrees are solved."""

    num_gpus: AutoCount = Field(default="auto", description="devices over all machines; processes on a CPU")
    dp: Count = Field(default=1, description="replicas that share out the items")
    cfg: AutoCount = Field(default="auto", description="guidance branches run side by side")
    sp: AutoCount = Field(default="auto", description="sequence parallel, ulysses times ring")
    ulysses: AutoCount = Field(default="auto", description="sequence parallel by heads")
    ring: AutoCount = Field(default="auto", description="sequence parallel by passing keys and values around")
    tp: Count = Field(default=1, description="tensor parallel")
    hsdp: Annotated[Count | Literal["none", "all"], worded("none, all, or a whole number of at least 1")] = Field(
        default="none", description="shard the weights over all ranks or over N; adds no factor"
    )


class MemorySpec(Section):
    """How much device memory a run may take."""

    budget: Size | None = Field(default=None, description="such as 24GiB: auto offload picks what fits, exactly")


class TaylorSeer(Section):
    """Extrapolation of cached features."""

    enabled: bool = Field(default=False, description="extrapolate instead of repeating")
    order: Annotated[int, Field(ge=1, le=2)] = Field(default=1, description="of the Taylor expansion, 1 or 2")


class Scm(Section):
    """Step computation masking: which steps are computed and which come from the cache."""

    preset: Literal["none", "slow", "medium", "fast", "ultra"] = Field(default="none", description="careful to fast")
    policy: Literal["dynamic", "static"] = Field(default="dynamic", description="static obeys the mask without looking")
    compute_bins: Many[Count] = Field(default=(), description="lengths of the computed runs of steps")
    cache_bins: Many[Count] = Field(default=(), description="lengths of the cached runs between them")
    compat: Literal["none", "cache-dit"] = Field(default="none", description="count masks exactly as cache-dit")

    @model_validator(mode="after")
    def _bins_come_in_pairs(self) -> "Scm":
        if bool(self.compute_bins) != bool(self.cache_bins):
            raise problem("compute_bins and cache_bins go together; give both or neither")
        if self.compute_bins and self.preset != "none":
            raise problem(f"give preset: {self.preset} or bins, not both")
        return self


class TeaCache(Section):
    """Caching by the change of the timestep embedding."""

    threshold: AutoNotNegative = Field(default="auto", description="accumulated change that ends a cached run")
    coefficients: AutoNumbers = Field(default="auto", description="highest power first; auto: the family's")


class SecondaryCache(Section):
    """Where the cache of a second transformer differs; null is the same."""

    fn_compute_blocks: Count | None = Field(default=None, description="first blocks always computed")
    bn_compute_blocks: Whole | None = Field(default=None, description="last blocks always computed")
    max_warmup_steps: Whole | None = Field(default=None, description="steps before caching starts")
    max_cached_steps: Annotated[int, Field(ge=-1)] | None = Field(default=None, description="-1 is no limit")
    residual_diff_threshold: NotNegative | None = Field(default=None, description="change that forces a computed step")
    max_continuous_cached_steps: Annotated[int, Field(ge=-1)] | None = Field(default=None, description="-1 is no limit")


class CacheSpec(Shorthand):
    """Reuse of features between steps. Lossy, so off by default. A plain text is the backend."""

    short = "backend"
    backend: Literal["none", "dbcache", "teacache"] = Field(default="none", description="how to decide what to reuse")
    fn_compute_blocks: Count = Field(default=1, description="first blocks always computed")
    bn_compute_blocks: Whole = Field(default=0, description="last blocks always computed")
    max_warmup_steps: Whole = Field(default=4, description="steps before caching starts")
    max_cached_steps: Annotated[int, Field(ge=-1)] = Field(default=-1, description="in all; -1 is no limit")
    residual_diff_threshold: NotNegative = Field(default=0.24, description="change that forces a computed step")
    max_continuous_cached_steps: Annotated[int, Field(ge=-1)] = Field(default=3, description="in a row; -1 is no limit")
    taylorseer: TaylorSeer = Field(default_factory=TaylorSeer, description="extrapolation of cached features")
    scm: Scm = Field(default_factory=Scm, description="step masks")
    secondary: SecondaryCache = Field(default_factory=SecondaryCache, description="for transformer_2")
    teacache: TeaCache = Field(default_factory=TeaCache, description="settings of the teacache backend")
    min_hit_rate: Fraction = Field(default=0.01, description="fewer reused steps than this share is an error")


class Recipe(Section):
    """One complete run."""

    schema_: Literal["difftool/v1"] = Field(default="difftool/v1", alias="schema", description="version of this format")
    name: Text | None = Field(default=None, description="what the run is called; null = the file's stem")
    extends: Text | None = Field(default=None, description="built-in name or relative path of the recipe to change")
    model: ModelSpec = Field(description="which weights")
    stages: Stages = Field(default_factory=Stages, description="settings of each stage")
    parallel: ParallelSpec = Field(default_factory=ParallelSpec, description="ranks along each axis")
    memory: MemorySpec = Field(default_factory=MemorySpec, description="device memory")
    cache: CacheSpec = Field(default_factory=CacheSpec, description="reuse of features between steps")
    sampling: Sampling = Field(default_factory=Sampling, description="what to make")
    launch: Launch = Field(default_factory=Launch, description="how processes start")
    output: Output = Field(default_factory=Output, description="where media go")
    perf: Perf = Field(default_factory=Perf, description="how time is measured")
    quality: Quality = Field(default_factory=Quality, description="how close outputs must stay to a reference")
    sweep: Sweep | None = Field(default=None, description="many runs that differ by a few keys")
    serve: Serve = Field(default_factory=Serve, description="the HTTP server")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe file, for editors and checkers."""
    described = Recipe.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **described, "title": "difftool recipe"}

"""The sections of a recipe that never change a picture: launch, output, perf, quality, sweep and serve."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from difftool.recipe.fields import (
    AutoCount,
    AutoWhole,
    Count,
    Free,
    Many,
    NotNegative,
    Path,
    Positive,
    Section,
    Text,
    Whole,
    plain_values,
    problem,
)

ENDPOINT = re.compile(r"(\[[0-9a-fA-F:.%\w]+\]|[^\[\]:/\s]+):(?P<port>[0-9]{1,5})")


class Launch(Section):
    """How processes start."""

    device: Literal["auto", "cuda", "cpu", "mps"] = Field(default="auto", description="cuda is ROCm too")
    devices: Annotated[Many[Whole], Field(min_length=1)] | None = Field(
        default=None, description="indices of CUDA devices, one for each rank of this machine; null = the first"
    )
    launcher: Literal["auto", "direct", "torchrun"] = Field(default="auto", description="auto: direct for one rank")
    nnodes: Count = Field(default=1, description="machines")
    node_rank: Whole = Field(default=0, description="which of the machines this one is")
    rdzv_endpoint: Text | None = Field(default=None, description="host:port where the machines meet")
    stall_timeout_s: Positive = Field(default=600.0, description="seconds without progress before the run is ended")
    offline: bool = Field(default=False, description="fetch nothing: what is not on this machine is refused")
    pin_memory: bool = Field(default=True, description="page-locked host memory for offload")
    threads: AutoCount = Field(default="auto", description="CPU threads of each process")
    prompt_embeds_dir: Path | None = Field(
        default=None, description="folder that keeps text encodings from run to run; null = none are kept"
    )
    on_oom: Literal["fail", "fallback"] = Field(default="fail", description="fallback retries with more offload")

    @model_validator(mode="after")
    def _node_rank_is_below_nnodes(self) -> "Launch":
        if self.node_rank >= self.nnodes:
            raise problem(f"node_rank={self.node_rank} with nnodes={self.nnodes}; ranks count from 0")
        if self.nnodes > 1 and self.rdzv_endpoint is None:
            raise problem(f"nnodes={self.nnodes} needs rdzv_endpoint: host:port, an address of node 0")
        if self.rdzv_endpoint is not None and not _is_endpoint(self.rdzv_endpoint):
            raise problem(f"rdzv_endpoint={self.rdzv_endpoint!r}: use host:port, for example node0:29400")
        return self


def _is_endpoint(text: str) -> bool:
    """`host:port`; an IPv6 address stands in brackets."""
    found = ENDPOINT.fullmatch(text)
    return found is not None and 0 < int(found["port"]) < 65536


class Output(Section):
    """Where media go and what they are called."""

    dir: Text = Field(default="outputs", description="folder, relative to the current one")
    name: Text = Field(default="{prompt}-{seed}", description="file name without suffix, with placeholders")
    format: Literal["auto", "png", "jpg", "webp", "mp4", "gif", "wav", "npz"] = Field(
        default="auto", description="npz holds raw float32 pixels"
    )
    quality: Annotated[int, Field(ge=1, le=100)] | None = Field(default=None, description="of a lossy format, 1 to 100")
    embed_metadata: bool = Field(default=True, description="write the recipe into every file")
    on_collision: Literal["suffix", "overwrite", "error"] = Field(default="suffix", description="when the file exists")


class Perf(Section):
    """How time is measured."""

    warmup: AutoWhole = Field(default="auto", description="untimed runs before the measured ones")
    repeats: Count = Field(default=1, description="measured runs of every item")
    tag: Text | None = Field(default=None, description="a label in the perf dump")


class Reference(Section):
    """What outputs are compared with: the same recipe without some keys, or a folder."""

    without: Annotated[Many[Text], Field(min_length=1)] | None = Field(
        default=None, description="recipe keys put back to their defaults, for example [cache]"
    )
    dir: Path | None = Field(default=None, description="folder of reference outputs")

    @model_validator(mode="after")
    def _one_kind_of_reference(self) -> "Reference":
        if (self.without is None) == (self.dir is None):
            raise problem("give either without: [keys] or dir: folder")
        return self


class Metrics(Section):
    """Weights of models that score the outputs; null: that score is not computed."""

    lpips: Path | None = Field(
        default=None, description="state of lpips.LPIPS(net='alex') as .safetensors; compares with the reference"
    )
    clip: Path | None = Field(
        default=None, description="folder of a CLIP model of transformers; compares with the prompt and the reference"
    )


class Quality(Section):
    """How close the outputs must stay to a reference."""

    tier: Literal["none", "exact", "lossless", "near", "lossy"] = Field(default="none", description="least accepted")
    reference: Reference | None = Field(default=None, description="what to compare with")
    metrics: Metrics = Field(default_factory=Metrics, description="scores by models, which count for no tier")


PlainList = Annotated[list[Any], BeforeValidator(plain_values), Field(min_length=1)]


class Sweep(Section):
    """Many runs that differ by a few keys."""

    matrix: Annotated[dict[str, PlainList], Field(min_length=1)] = Field(description="dotted key: list of values")
    exclude: Many[Free] = Field(default=(), description="points left out, as mappings of dotted keys")
    max_points: Count = Field(default=16, description="more points than this are refused")


class Serve(Section):
    """The HTTP server."""

    host: Text = Field(default="127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=30010, description="0 takes a free one")
    api_key_file: Path | None = Field(default=None, description="file with the key that clients send")
    admin_key_file: Path | None = Field(default=None, description="file with the key for LoRA management")
    lora_dir: Path | None = Field(default=None, description="folder that LoRA paths may name")
    state_dir: Path | None = Field(default=None, description="folder of jobs and their outputs")
    max_queue: Count = Field(default=16, description="waiting requests; further ones are answered 429")
    max_batch: Count = Field(default=1, description="requests run together")
    request_timeout_s: Positive = Field(default=600.0, description="seconds until a request is given up")
    shutdown_grace_s: NotNegative = Field(default=30.0, description="seconds running requests get to finish")
    max_pixels: Count | None = Field(default=None, description="height times width, at most")
    max_frames: Count | None = Field(default=None, description="frames, at most")
    served_model_name: Text | None = Field(default=None, description="model name in responses")

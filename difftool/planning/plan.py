"""The frozen Plan: one resolved run, as data that crosses to the worker as JSON."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

NOT_EMBEDDED = ("launch", "output", "perf", "quality", "sweep", "serve")  # sections that cannot change an item
GIF_MAX_FPS = 50  # a GIF counts hundredths of a second, and viewers slow anything shorter than two of them down


class Frozen(BaseModel):
    """Base of everything in a plan: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelPlan(Frozen):
    """Which weights. `folder` is set where they lie on this machine; else `hub_id` is fetched by the worker."""

    name: str  # as the user wrote it
    hub_id: str | None
    folder: str | None
    revision: str | None
    family: str
    pipeline_class: str
    builtin: bool


class Degrees(Frozen):
    """Ranks along each axis; their product is num_gpus. HSDP shards weights and adds no factor."""

    num_gpus: int
    dp: int
    cfg: int
    ring: int
    ulysses: int
    tp: int
    hsdp: str | int


class Item(Frozen):
    """One picture, video or clip to make: the position in the batch, its seed and its complete sampling values."""

    index: int
    output: int
    id: str
    prompt: str
    seed: int
    sampling: Mapping[str, Any]


class OutputPlan(Frozen):
    """Where media go and what they are called. `file` names the one output of `-o x.png`."""

    dir: str
    file: str | None
    name: str
    format: Literal["png", "jpg", "webp", "mp4", "gif", "wav", "npz"]
    quality: int | None
    embed_metadata: bool
    on_collision: Literal["suffix", "overwrite", "error"]
    return_frames: bool
    save: bool


class Choice(Frozen):
    """A value `auto` chose, or a setting that is applied: shown by `difftool plan`, recorded in the dump."""

    key: str
    value: str
    reason: str


class Plan(Frozen):
    """One complete run. `recipe` is the resolved recipe (a mapping that loads to the same plan).

    `provenance` says where each recipe value came from: `recipe.yaml:3:5`, `--seed`, `default`, `family flux1`, ….
    """

    schema_: Literal["difftool.plan/v1"] = "difftool.plan/v1"
    name: str
    task: str
    model: ModelPlan
    degrees: Degrees
    device: str  # auto | cpu | cuda | mps, resolved by the worker
    stages: Mapping[str, Mapping[str, Any]]
    items: tuple[Item, ...]
    output: OutputPlan
    keep_going: bool  # an item that fails does not end the run
    warmup: int
    repeats: int
    tag: str | None
    threads: int
    stall_timeout_s: float
    choices: tuple[Choice, ...]
    recipe: Mapping[str, Any]
    provenance: Mapping[str, str]
    recipe_sha256: str
    workload_sha256: str

    def item_recipe(self, item: Item) -> dict[str, Any]:
        """The recipe that makes this one item again: without the sections that cannot change it.

        A local model is named by its folder alone: absolute paths are nobody else's business. One item is made by one
        replica, however many there were.
        """
        recipe = {key: value for key, value in self.recipe.items() if key not in NOT_EMBEDDED}
        sampling = {**recipe["sampling"], **item.sampling, "prompt": item.prompt, "seed": item.seed}
        sampling |= {"prompts": None, "num_outputs_per_prompt": 1}
        model = {**recipe["model"]}
        if self.model.folder is not None:
            model["path"] = self.model.folder.replace("\\", "/").rstrip("/").rpartition("/")[2]
        replica = {"num_gpus": self.degrees.num_gpus // self.degrees.dp, "dp": 1}
        return {**recipe, "model": model, "sampling": sampling, "parallel": {**recipe.get("parallel", {}), **replica}}

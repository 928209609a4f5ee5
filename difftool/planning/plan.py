"""The frozen Plan: one resolved run, as data that crosses to the worker as JSON."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from difftool.planning.pictures import as_lists
from difftool.report.perf import Tier

NOT_EMBEDDED = ("launch", "memory", "output", "perf", "quality", "sweep", "serve")  # no item depends on them
GIF_MAX_FPS = 50  # a GIF counts hundredths of a second, and viewers slow anything shorter than two of them down


class Frozen(BaseModel):
    """Base of everything in a plan: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def file_name(path: str) -> str:
    """The last part of a path of any system."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


class ComponentPlan(Frozen):
    """Other weights for one component: a `folder` with its config, a weight `file`, or those of `hub_id`: a folder of
    the repository, or the one file `weight_name`.
    """

    name: str  # as the user wrote it
    folder: str | None = None
    file: str | None = None
    hub_id: str | None = None
    subfolder: str | None = None  # of the hub repository
    weight_name: str | None = None  # of the hub repository
    revision: str | None = None

    @property
    def shown(self) -> str:
        """Its name without the folders of this machine."""
        return self.name if self.hub_id is not None or self.name.startswith("builtin:") else file_name(self.name)


class ModelPlan(Frozen):
    """Which weights. `folder` is set where they lie on this machine; else `hub_id` is fetched by the worker."""

    name: str  # as the user wrote it
    hub_id: str | None
    folder: str | None
    revision: str | None
    family: str
    pipeline_class: str
    builtin: bool
    backend: Literal["native", "diffusers"] = "native"
    diffusers_kwargs: Mapping[str, Any] = {}  # arguments of every call of a pipeline that diffusers runs
    trust_remote_code: bool = False
    components: Mapping[str, ComponentPlan] = {}  # those that come from elsewhere
    code: str | None = None  # folder of an out-of-tree family
    code_sha256: str | None = None  # of its Python files, and of those of an installed one


class LoraPlan(Frozen):
    """One LoRA. `file` is set where it lies on this machine; else the worker fetches it from the hub: `weight_name` of
    `hub_id`, or the one file that is there.
    """

    nickname: str
    name: str  # without the folders of a local file
    target: Literal["all", "transformer", "transformer_2", "critic"]
    strength: float
    min_match: float
    file: str | None = None
    sha256: str | None = None  # of a local file
    hub_id: str | None = None
    weight_name: str | None = None
    revision: str | None = None


class Degrees(Frozen):
    """Ranks along each axis; their product is num_gpus. HSDP shards weights and adds no factor."""

    num_gpus: int
    dp: int
    cfg: int
    ring: int
    ulysses: int
    tp: int
    hsdp: str | int

    @property
    def sharing(self) -> int:
        """How many ranks, one after the other, keep one copy of the denoiser's weights among them."""
        if isinstance(self.hsdp, int):
            return self.hsdp
        return self.num_gpus if self.hsdp == "all" else 1


class Item(Frozen):
    """One picture, video or clip to make: the position in the batch, its seed and its complete sampling values."""

    index: int
    output: int
    id: str
    prompt: str
    seed: int
    sampling: Mapping[str, Any]

    @property
    def pictures(self) -> dict[str, list[str]]:
        """Paths of its condition pictures, by sampling key."""
        return as_lists(self.sampling)


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


class Nodes(Frozen):
    """The machines of a run, `rank` being this one. They meet at `host`:`port`, an address of the first."""

    count: int
    rank: int
    host: str
    port: int

    @property
    def endpoint(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Sending(Frozen):
    """What one rank sends by one collective along one line of the mesh."""

    line: str
    collective: str
    calls: int
    bytes: int


class RankPrediction(Frozen):
    """One rank: its index along each axis, bytes of weights by component (None: not known here) and of the denoiser's
    activations (an estimate), and what it sends in the first step and for a whole item.
    """

    rank: int
    place: Mapping[str, int]
    weights: Mapping[str, int | None]
    activations: int
    step: tuple[Sending, ...]
    item: tuple[Sending, ...]


class Scaling(Frozen):
    """One kind of link: what a rank computes and waits in a step, and how many times one card this is. A prediction."""

    link: str
    computing_s: float
    waiting_s: float
    speedup: float
    efficiency: float


class QuantizedPrediction(Frozen):
    """How many of the linear layers of the denoiser's blocks will be in fp8 or int8, and the bytes that a rank has less
    for it. `at_most`: some may be excluded by name.
    """

    name: str
    layers: int
    of: int
    at_most: bool
    saved: int


class Holding(Frozen):
    """Weights of one component on a rank: their bytes, `element` for a number. `blocks` of it, the largest of `block`
    bytes, may be streamed, and what is `outside` of them not.
    """

    name: str
    role: str
    bytes: int
    element: int
    blocks: int = 0
    block: int = 0
    outside: int = 0


class BudgetPlan(Frozen):
    """What offload keeps within `bytes`: these weights, and about so many bytes of the denoiser's activations."""

    bytes: int
    holdings: tuple[Holding, ...]
    activations: int


class Streaming(Frozen):
    """Blocks of the denoiser that come for every step: their bytes, how long they take over the `link`, and how long a
    rank computes meanwhile. A prediction.
    """

    bytes: int
    link: str
    coming_s: float
    computing_s: float


class Prediction(Frozen):
    """What the first item costs. `tokens` are those of the denoiser's streams; not `exact`: the text's length depends
    on the prompt, and this is the longest. `flops` and `forwards`, of a rank, are those of the first step, `lines` the
    ranks that speak together.
    """

    precision: str
    quantized: QuantizedPrediction | None = None
    tokens: Mapping[str, int]
    exact: bool
    flops: int
    lines: Mapping[str, tuple[tuple[int, ...], ...]]
    forwards: int = 1
    ranks: tuple[RankPrediction, ...]
    scaling: tuple[Scaling, ...]
    streaming: Streaming | None = None


class Choice(Frozen):
    """A value `auto` chose, or a setting that is applied: shown by `difftool plan`, recorded in the dump."""

    key: str
    value: str
    reason: str


class QualityPlan(Frozen):
    """What the outputs must be worth. `reference` says in words what they are compared with, `files` hold it, one for
    every item. Where a run makes them first, `recipe` is the recipe of that run. `lpips` and `clip` are the file and
    the folder of models that score the outputs.
    """

    tier: Tier = "none"
    reference: str | None = None
    files: tuple[str, ...] = ()
    recipe: Mapping[str, Any] | None = None
    lpips: str | None = None
    clip: str | None = None


class ProfilePlan(Frozen):
    """What a profiler records. Torch's: of a rank's first item so many denoising steps after the first one, or all
    stages. Nsight Systems: everything, from `delay` to `duration` seconds after that, counted from the start of the
    processes. `memory_snapshot`: what the CUDA allocator does for the first item.
    """

    steps: int = 5
    all_stages: bool = False
    tool: Literal["torch", "nsys"] = "torch"
    delay: int | None = None
    duration: int | None = None
    memory_snapshot: bool = False


class Plan(Frozen):
    """One complete run. `recipe` is the resolved recipe (a mapping that loads to the same plan).

    `provenance` says where each recipe value came from: `recipe.yaml:3:5`, `--seed`, `default`, `family flux1`, ….
    """

    schema_: Literal["difftool.plan/v1"] = "difftool.plan/v1"
    name: str
    task: str
    model: ModelPlan
    loras: tuple[LoraPlan, ...] = ()  # merged into the model in this order
    degrees: Degrees
    device: str  # auto | cpu | cuda | mps, resolved by the worker
    devices: tuple[int, ...] | None = None  # CUDA's, of this machine, one for each rank on it; None: the first ones
    stages: Mapping[str, Mapping[str, Any]]
    items: tuple[Item, ...]
    pictures: Mapping[str, str]  # sha256 of every condition picture, by path
    output: OutputPlan
    quality: QualityPlan = QualityPlan()
    profile: ProfilePlan | None = None
    keep_going: bool  # an item that fails does not end the run
    warmup: int
    repeats: int
    tag: str | None
    threads: int
    stall_timeout_s: float
    budget: BudgetPlan | None = None  # None: offload is as it is asked for
    pin_memory: bool = True
    on_oom: Literal["fail", "fallback"] = "fail"
    prompt_embeds_dir: str | None = None  # keeps text encodings from run to run
    puts_encoders_off: bool = False  # no encoder is read before a text comes whose encoding is not on the disk
    launcher: Literal["auto", "direct", "torchrun"] = "auto"
    nodes: Nodes | None = None  # None: this machine alone
    choices: tuple[Choice, ...]
    refused: tuple[str, ...] = ()  # of a preview: why it cannot run
    exit_code: int = 0  # of a preview: what a run that is refused for it ends with
    prediction: Prediction | None = None  # of a preview
    recipe: Mapping[str, Any]
    provenance: Mapping[str, str]
    recipe_sha256: str
    workload_sha256: str

    @property
    def offline(self) -> bool:
        """Whether nothing is fetched from the hub: so it was asked, or nothing of it can come from there."""
        hub = [lora.hub_id for lora in self.loras] + [part.hub_id for part in self.model.components.values()]
        asked: bool = self.recipe.get("launch", {}).get("offline", False)
        return asked or self.model.builtin and not any(hub)

    def item_recipe(self, item: Item) -> dict[str, Any]:
        """The recipe that makes this one item again: without what cannot change it, such as where weights wait.

        A local model, its code, LoRAs and condition pictures are named without their folders: absolute paths
        are nobody else's business. One item is made by one replica, however many there were.
        """
        recipe = {key: value for key, value in self.recipe.items() if key not in NOT_EMBEDDED}
        sampling = {**recipe["sampling"], **item.sampling, "prompt": item.prompt, "seed": item.seed}
        sampling |= {"prompts": None, "num_outputs_per_prompt": 1}
        for key, paths in item.pictures.items():
            names = [file_name(path) for path in paths]
            sampling[key] = names if key == "image" else names[0]
        model = {**recipe["model"]}
        if self.model.folder is not None:
            model["path"] = file_name(self.model.folder)
        if self.model.components:
            model["path"] = file_name(model["path"]) if model["path"].endswith(".safetensors") else model["path"]
            model["components"] = {
                name: {**entry, "path": self.model.components[name].shown}
                for name, entry in model["components"].items()
            }
        if self.model.code is not None:
            model["code"] = file_name(self.model.code)
        model["lora"] = [
            {**entry, "path": lora.name, **({} if lora.file is None else {"weight_name": None})}
            for entry, lora in zip(model.get("lora", ()), self.loras, strict=True)
        ]
        ranks = self.degrees.num_gpus // self.degrees.dp
        replica: dict[str, int | str] = {"num_gpus": ranks, "dp": 1}
        if ranks % self.degrees.sharing:  # with other replicas, which made other items
            replica["hsdp"] = "all" if ranks > 1 else "none"
        stages = {
            role: {key: value for key, value in stage.items() if key != "offload"}
            for role, stage in recipe.get("stages", {}).items()
        }
        recipe |= {"stages": stages}
        return {**recipe, "model": model, "sampling": sampling, "parallel": {**recipe.get("parallel", {}), **replica}}

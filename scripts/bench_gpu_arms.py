"""The arms of bench_gpu.py: difftool's own stages and transforms, and stock diffusers, over the same weights.

Every arm has modules of its own, whose parameters are those of all: transforms of one change none of the others.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench_gpu_models import Text
from torch import Tensor, nn

from difftool.acceleration import attention, compilation
from difftool.acceleration.attention import site_of
from difftool.attention import Needs, explained, faults
from difftool.components.check import read_index
from difftool.components.load import hold
from difftool.components.loaded import Components
from difftool.engine import make_batch
from difftool.errors import PlanError
from difftool.facts import Refused
from difftool.parallel.mesh import Mesh
from difftool.parallel.world import World
from difftool.pipeline.batch import Batch
from difftool.pipeline.composed import ComposedPipeline
from difftool.pipeline.config import PipelineConfig
from difftool.pipeline.flops import denoiser_calls, item_flops
from difftool.pipeline.foreign import ForeignPipeline
from difftool.pipeline.registry import load_config
from difftool.pipeline.stage import Context
from difftool.pipeline.transforms import Site, apply_all, resolve_all
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.plan import Plan
from difftool.platforms.base import Platform
from difftool.profiling.timers import Timer
from difftool.recipe.load import load_recipe
from difftool.stages.text_encoding import TextEncodingStage

CUDNN = "_native_cudnn"  # diffusers' name of it
NATIVE = "native"  # torch's own choice
RANDOM = {"weights": {"status": "random", "detail": "made for a benchmark: no checkpoint was read"}}


@dataclass(frozen=True)
class Setting:
    """What an arm is. `own`: difftool's; `attention` and `compile` are values of a recipe."""

    own: bool
    attention: str
    compile: str


ARMS: Mapping[str, Setting] = {
    "diffusers": Setting(False, "torch_sdpa", "none"),
    "diffusers-cudnn": Setting(False, "cudnn", "none"),
    "diffusers-compile": Setting(False, "torch_sdpa", "regional"),
    "diffusers-cudnn-compile": Setting(False, "cudnn", "regional"),
    "difftool": Setting(True, "auto", "none"),
    "difftool-fa": Setting(True, "fa", "none"),
    "difftool-cudnn": Setting(True, "cudnn", "none"),
    "difftool-compile": Setting(True, "auto", "regional"),
    "difftool-cudnn-compile": Setting(True, "cudnn", "regional"),
}
DEFAULT = [name for name in ARMS if name not in ("diffusers-compile", "difftool-compile")]


@dataclass(frozen=True)
class Arm:
    """One way to denoise: `run` makes a sample on the clock and returns its latents; `effective` was applied to it."""

    name: str
    setting: Setting
    plan: Plan
    run: Callable[[Timer], Tensor]
    effective: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Bench:
    """What the arms of one model share. `plan` makes that of an arm; `precision` is the transformer's."""

    plan: Callable[[str], Plan]
    precision: str
    folder: Path
    platform: Platform
    modules: Mapping[str, Any]
    text: Text

    def components(self, config: PipelineConfig, *, twin: bool) -> Components:
        """In the holder that the family asks for. `twin`: modules that other arms do not see changed."""
        held = {
            name: shared_copy(part) if twin and isinstance(part, nn.Module) else part
            for name, part in self.modules.items()
        }
        modules = {**dict.fromkeys((*config.pipeline.components, *config.pipeline.optional)), **held}
        return Components(modules, hold(config.holder, modules, read_index(self.folder)))


def shared_copy(module: nn.Module) -> nn.Module:
    """A module of its own whose parameters and buffers are those of the other."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def planned(hub_id: str, arm: str, sampling: Mapping[str, Any], *, device: str, repeats: int, label: str) -> Plan:
    """The plan that difftool makes of the arm's recipe. Raises RecipeError for one that it refuses."""
    setting = ARMS[arm]
    denoising = {"attention": setting.attention, "compile": setting.compile}
    recipe = {
        "name": label,
        "model": hub_id,
        "sampling": {"prompt": "random embeddings", **sampling},
        "stages": {"denoising": denoising},
        "launch": {"device": device},
        "perf": {"tag": arm, "repeats": repeats, "warmup": 1},
    }
    return make_plan(load_recipe(recipe), run=RunOptions())


def site_for(plan: Plan, platform: Platform, folder: Path) -> tuple[Site, PipelineConfig]:
    """Where the transforms of a plan take place, on one device."""
    config = load_config(plan.model.family, plan.model.pipeline_class)
    return Site(plan, platform, Mesh({}, World()), config.roles, silent, config, root=folder), config


def precisions(plan: Plan, platform: Platform, folder: Path) -> dict[str, str]:
    """Of every module, as the plan's own transform decides."""
    resolved = resolve_all(site_for(plan, platform, folder)[0])
    return {name: str(precision) for name, precision in resolved["precision"].detail.items()}


def silent(event: str, **values: Any) -> None:
    """Reports nothing."""


class GivenText(TextEncodingStage):
    """Encodings that are there before the request: no encoder is loaded."""

    components = ()

    def __init__(self, config: PipelineConfig, text: Text):
        super().__init__(config)
        self.text = text

    def forward(self, batch: Batch, ctx: Context) -> Batch:
        return replace(batch, prompt_embeds=self.text.positive, negative_prompt_embeds=self.text.negative)


def make_arm(bench: Bench, name: str) -> Arm:
    """The arm, ready to run. Raises DifftoolError with the reason for one that cannot be here."""
    make = own_arm if ARMS[name].own else stock_arm
    return make(bench, name, bench.plan(name))


def own_arm(bench: Bench, name: str, plan: Plan) -> Arm:
    """difftool: its transforms over the modules, and its stages up to the denoising."""
    site, config = site_for(plan, bench.platform, bench.folder)
    resolved = resolve_all(site)
    components = bench.components(config, twin=True)
    made = apply_all(site, components, resolved)
    effective = {key: {"status": "applied", **each.applied.detail} for key, each in made.items() if each.applied}
    pipeline = composed(config, bench.text)
    joined = attention.joins(effective["attention"], config.facts)

    def run(timer: Timer) -> Tensor:
        done = pipeline(make_batch(plan.items[0]), Context(components, timer, silent, joined=joined))
        assert done.denoised is not None
        return done.denoised

    return Arm(name, ARMS[name], plan, run, {**effective, **RANDOM})


def composed(config: PipelineConfig, text: Text, *, result: str = "denoised") -> ComposedPipeline:
    """The family's stages up to the one that writes `result`, with texts that are encoded already."""
    stages = []
    for stage in config.stages():
        stages.append(GivenText(config, text) if isinstance(stage, TextEncodingStage) else stage)
        if result in stage.writes:
            break
    components = (*config.pipeline.components, *config.pipeline.optional)
    return ComposedPipeline(stages, available=components, result=result)


def step_flops(bench: Bench, plan: Plan) -> float | None:
    """Those of one step of the plan's item, by the family's formula."""
    config = load_config(plan.model.family, plan.model.pipeline_class)
    ctx = Context(bench.components(config, twin=False), Timer(bench.platform), silent)
    batch = composed(config, bench.text, result="branches")(make_batch(plan.items[0]), ctx)
    values = plan.items[0].sampling
    flops = item_flops(denoiser_calls(config, ctx.components, batch, values, joined=True))
    return None if flops is None else flops / values["num_inference_steps"]


def stock_arm(bench: Bench, name: str, plan: Plan) -> Arm:
    """diffusers: the pipeline's own call, set up as its documentation says, watched from outside for its steps."""
    setting, config = ARMS[name], load_config(plan.model.family, plan.model.pipeline_class)
    check_stock(bench, setting, plan, config)
    modules = bench.components(config, twin=True).modules
    pipe = hold(plan.model.pipeline_class, modules, read_index(bench.folder))
    pipe.set_progress_bar_config(disable=True)
    backend = CUDNN if setting.attention == "cudnn" else NATIVE
    pipe.transformer.set_attention_backend(backend)  # said of every arm: diffusers keeps the last one for all others
    if setting.compile == "regional":
        pipe.transformer.compile_repeated_blocks(fullgraph=True)
    roles = {"text_encoding": (), "denoising": ("transformer",), "decoding": ("vae",)}
    pipeline = ForeignPipeline(pipe, roles, {"prompt": None, **bench.text.call, "output_type": "latent"})

    def run(timer: Timer) -> Tensor:
        ctx = Context(pipeline.components, timer, silent)
        return pipeline.made(make_batch(plan.items[0]), ctx, read=lambda output: output[0])

    told = {"attention": {"status": "applied", "transformer": backend}}
    if setting.compile == "regional":
        told["compile"] = {"status": "applied", "transformer": "compile_repeated_blocks"}
    return Arm(name, setting, as_stock(plan), run, {**told, **RANDOM})


def check_stock(bench: Bench, setting: Setting, plan: Plan, config: PipelineConfig) -> None:
    """Raises PlanError for what cannot be here, in difftool's words: diffusers fails in the middle of a forward."""
    needs = Needs(config.facts.head_width({"transformer": bench.modules["transformer"].config}))
    if found := faults(setting.attention, site_of(bench.platform, bench.precision), needs):
        raise PlanError(explained(setting.attention, found))
    outcome = compilation.resolve({"denoising": setting.compile}, bench.platform, pays=True)
    if isinstance(outcome, Refused):
        raise PlanError(outcome.reason)


def as_stock(plan: Plan) -> Plan:
    """The same request, told in the dump as one that diffusers runs. Its workload is the same by construction."""
    recipe = {**plan.recipe, "model": {**plan.recipe["model"], "backend": "diffusers"}}
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    model = plan.model.model_copy(update={"backend": "diffusers"})
    return plan.model_copy(update={"recipe": recipe, "recipe_sha256": digest, "model": model})

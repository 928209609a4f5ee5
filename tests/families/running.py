"""Tiny checkpoints assembled around the components of a stock pipeline, so that both run the same loaded modules."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import diffusers
import torch
from families.cases import CASES, Case

from difftool.components.loaded import Components
from difftool.pipeline.batch import Batch
from difftool.pipeline.composed import ComposedPipeline
from difftool.pipeline.config import PipelineConfig
from difftool.pipeline.registry import load_config
from difftool.pipeline.stage import Context
from difftool.platforms.base import current
from difftool.profiling.timers import Timer
from difftool.stages.denoising import DenoisingStage

FIELDS = ("height", "width", "num_frames", "num_inference_steps", "max_sequence_length", "guidance_scale") + (
    "guidance_scale_2",
    "true_cfg_scale",
    "negative_prompt",
)
PAIR = ["a red circle", "two cats"]


@dataclass(frozen=True)
class AssembledCase:
    """One case, its stock pipeline and ours over the same modules."""

    case: Case
    stock: Any
    config: PipelineConfig
    pipeline: ComposedPipeline
    components: Components


def split_along(axis: str) -> list[Case]:
    """The cases of the families that name this axis."""
    return [case for case in CASES if axis in load_config(case.family, case.pipeline_class).facts.axes]


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@cache
def assemble_case(name: str) -> AssembledCase:
    case = case_named(name)
    torch.set_num_threads(1)
    built = case.build()
    config = load_config(case.family, case.pipeline_class)
    names = (*config.pipeline.components, *config.pipeline.optional)
    modules = {key: getattr(built, key, None) for key in names}
    components = Components(modules, _held(config, built, modules))
    stock = case.reference(built)
    stock.set_progress_bar_config(disable=True)
    return AssembledCase(case, stock, config, _composed(config), components)


def _held(config: PipelineConfig, built: Any, modules: Mapping[str, Any]) -> Any:
    """The built pipeline itself where it is of the class that the family asks for, else one of that class."""
    if type(built).__name__ == config.holder:
        return built
    kind = getattr(diffusers, config.holder)
    taken = signature(kind).parameters
    return kind(**{key: value for key, value in {**built.config, **modules}.items() if key in taken})


def _composed(config: PipelineConfig) -> ComposedPipeline:
    return ComposedPipeline(config.stages(), available=(*config.pipeline.components, *config.pipeline.optional))


def requests(case: Case) -> dict[str, Mapping[str, Any]]:
    """The common requests that mean something to a case, and its own, by name."""
    config = load_config(case.family, case.pipeline_class)
    base = batch_of(case)
    # tiny modules divide what the real ones do, or more
    found: dict[str, Mapping[str, Any]] = {
        "4 steps": {},
        "20 steps": {"num_inference_steps": 20},
        "wide": {"width": 2 * base.width, "seeds": [123456789]},
        "tall, few steps": {"height": base.height * 3 // 2, "num_inference_steps": case.fewest_steps, "seeds": [0]},
    }
    key, above = config.facts.second_branch, config.facts.second_branch_above
    one = {key: above, "negative_prompt": None} if key else {}
    guided = {key: above + 1.5, "negative_prompt": [""]} if key else {}
    found |= {"guided": guided, "one branch": one} if key else {}
    if config.facts.num_frames is not None:
        found["more frames"] = {"num_frames": base.num_frames + config.facts.num_frames[0]}
    if case.batches:
        found["three prompts"] = {"prompt": [*PAIR, ""], "seeds": [1, 2, 3], **one}
    if case.batches and key:
        found["guided, two prompts"] = {
            **guided,
            "negative_prompt": ["blurry", "blurry"],
            "prompt": PAIR,
            "seeds": [5, 5],
        }
    return {**found, **case.requests}


def batch_of(case: Case, **changes: Any) -> Batch:
    """A small request of the case, with changes by field."""
    own = {} if case.steps is None else {"num_inference_steps": case.steps}
    common = {"prompt": ["a red circle"], "seeds": [7], "num_inference_steps": 4}
    return Batch(**{**common, **case.request, **changes, **own})


def batch_for(assembled: AssembledCase, **changes: Any) -> Batch:
    return batch_of(assembled.case, **changes)


def context_for(assembled: AssembledCase, notify=lambda event, **values: None) -> Context:
    return Context(assembled.components, Timer(current("cpu")), notify)


def stock_arguments(assembled: AssembledCase, batch: Batch) -> dict[str, Any]:
    """The batch as arguments of the stock pipeline's call."""
    pictures = [picture.image for picture in batch.image]
    values = {key: getattr(batch, key) for key in FIELDS}
    values |= {
        "prompt": batch.prompt,
        "image": pictures[0] if len(pictures) == 1 else pictures or None,
        "last_image": batch.last_image and batch.last_image.image,
        **batch.extra,
        **assembled.case.arguments(batch),
    }
    taken = signature(type(assembled.stock).__call__).parameters
    return {key: value for key, value in values.items() if value is not None and key in taken}


def run_stock(assembled: AssembledCase, batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The stock pipeline on the same request: latents after every step, and pixels [B, C, H, W] or [B, C, F, H, W]."""
    steps: list[torch.Tensor] = []

    def keep(pipe, i, t, values):
        steps.append(values["latents"].clone())
        return {}

    generators = batch.generators()
    output = assembled.stock(
        generator=generators if len(generators) > 1 else generators[0],
        output_type="pt",
        callback_on_step_end=keep,
        **stock_arguments(assembled, batch),
    )
    return steps, output.images if "images" in output else output.frames.transpose(1, 2)


def run_ours(assembled: AssembledCase, batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Our pipeline on the request: the same two things."""
    steps: list[torch.Tensor] = []
    pipeline = _composed(assembled.config)
    (loop,) = (stage for stage in pipeline.stages if isinstance(stage, DenoisingStage))
    move = loop.move

    def watched(*arguments):
        steps.append(move(*arguments))
        return steps[-1]

    loop.move = watched
    return steps, pipeline(batch, context_for(assembled)).pixels

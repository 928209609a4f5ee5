"""Tiny checkpoints assembled around the components of a stock pipeline, so that both run the same loaded modules."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from families.cases import CASES, Case

from difftool.components.loaded import Components
from difftool.pipeline.batch import Batch
from difftool.pipeline.composed import ComposedPipeline
from difftool.pipeline.config import PipelineConfig
from difftool.pipeline.registry import load_config
from difftool.pipeline.stage import Context
from difftool.platforms import current
from difftool.profiling.timers import Timer


@dataclass(frozen=True)
class AssembledCase:
    """One case, its stock pipeline and ours over the same modules."""

    case: Case
    stock: Any
    config: PipelineConfig
    pipeline: ComposedPipeline
    components: Components


@cache
def assemble_case(name: str) -> AssembledCase:
    case = next(case for case in CASES if case.name == name)
    torch.set_num_threads(1)
    stock = case.build()
    stock.set_progress_bar_config(disable=True)
    config = load_config(case.family)
    components = Components({key: getattr(stock, key) for key in config.facts.components}, stock)
    pipeline = ComposedPipeline(config.stages(), available=config.facts.components)
    return AssembledCase(case, stock, config, pipeline, components)


def batch_for(assembled: AssembledCase, **changes: Any) -> Batch:
    """A small request of the case, with changes by field."""
    values = {"prompt": ["a red circle"], "seeds": [7], "num_inference_steps": 4, **assembled.case.request, **changes}
    return Batch(**values)


def context_for(assembled: AssembledCase, notify=lambda event, **values: None) -> Context:
    return Context(assembled.components, Timer(current("cpu")), notify)


def run_stock(assembled: AssembledCase, batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The stock pipeline on the same request: latents after every step, and pixels [B, C, H, W]."""
    steps: list[torch.Tensor] = []

    def keep(pipe, i, t, values):
        steps.append(values["latents"].clone())
        return values

    keys = ("height", "width", "num_inference_steps", "max_sequence_length", "guidance_scale", "true_cfg_scale")
    values = {key: getattr(batch, key) for key in keys if getattr(batch, key) is not None}
    pixels = assembled.stock(
        prompt=batch.prompt,
        negative_prompt=batch.negative_prompt,
        generator=batch.generators(),
        output_type="pt",
        callback_on_step_end=keep,
        **values,
    ).images
    return steps, pixels


def run_ours(assembled: AssembledCase, batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Our pipeline on the request: the same two things."""
    steps: list[torch.Tensor] = []
    step = type(assembled.config).step

    class Watched(type(assembled.config)):
        def step(self, batch, prediction, i, latents):
            steps.append(step(self, batch, prediction, i, latents))
            return steps[-1]

    config = Watched()
    pipeline = ComposedPipeline(config.stages(), available=config.facts.components)
    return steps, pipeline(batch, context_for(assembled)).pixels

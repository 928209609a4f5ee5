"""Pipelines of diffusers that no family runs natively: what their call takes and makes, read from diffusers' source.

The source is parsed, never imported, so planning stays free of torch and still refuses what a pipeline does not take.
"""

import ast
import difflib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from difftool.errors import Problem
from difftool.facts import CheckpointFacts, FamilyFacts, Makes, PipelineFacts
from difftool.planning.plan import ModelPlan
from difftool.recipe.sampling import SamplingValues

NAME = "diffusers"
FOREIGN_CHECKPOINTS = (  # known by name, so that they can be planned before they are fetched
    CheckpointFacts("AIDC-AI/Ovis-Image-7B", "OvisImagePipeline", {}, license="Apache-2.0"),
)
RESULTS: Mapping[str, Makes] = {"images": "image", "image": "image", "frames": "video", "videos": "video"}
RESULTS = {**RESULTS, "video": "video", "audios": "audio", "audio": "audio"}
# of the call, but not of a request: they are the engine's, or hold tensors
INTERNAL = ("self", "prompt", "generator", "latents", "output_type", "return_dict")
INTERNAL_ENDS = ("_embeds", "_embeds_mask", "_mask", "_latents", "_per_prompt", "_on_step_end", "_tensor_inputs")
OWN = ("prompt", "image", "last_image", "mask", "scheduler", "extra", "seed", "num_outputs_per_prompt", "fps")
COMMIT = re.compile(r"[0-9a-f]{40}")
FPS = 16  # of the saved video, where the request names none


@dataclass(frozen=True)
class ForeignCall:
    """The arguments of a pipeline's `__call__` with their defaults (`...` where there is none), and what it makes."""

    arguments: Mapping[str, Any]
    makes: Makes


def foreign_facts(class_name: str) -> FamilyFacts | None:
    """Facts of one pipeline class of the installed diffusers; None where it has no such class that can be read, or one
    that makes sound, whose rate in Hz its call does not tell.
    """
    call = foreign_call(class_name)
    if call is None or call.makes == "audio":
        return None
    known = [key for key in SamplingValues.model_fields if key not in OWN]
    sampling = {key: _plain(call.arguments[key]) for key in known if key in call.arguments}
    internal = [key for key in call.arguments if key in INTERNAL or key.endswith(INTERNAL_ENDS)]
    extra = {key: object for key in call.arguments if key not in (*known, *internal, "image", "last_image")}
    least = int(call.arguments.get("image") is ...)
    pipeline = PipelineFacts(
        makes=call.makes,
        model="difftool.pipeline.foreign:ForeignPipeline",
        components=(),
        images=(least, 16 if "image" in call.arguments else 0),
        last_image="last_image" in call.arguments,
    )
    return FamilyFacts(
        name=NAME,
        title=class_name,
        pipelines={class_name: pipeline},
        checkpoints=(),
        sampling={**sampling, **({"fps": FPS} if call.makes == "video" else {})},
        extra=extra,
        guidance=tuple(key for key in ("guidance_scale", "guidance_scale_2", "true_cfg_scale") if key in sampling),
        second_branch=None,
        axes=("dp",),
        heads_key="num_attention_heads",
        size_multiple=1,
        num_frames=(1, 0) if call.makes == "video" else None,
        max_sequence_length=1 << 20,
        takes_sigmas=False,
    )


def check_foreign(model: ModelPlan) -> list[Problem]:
    """What of a model's own settings would do nothing, or is not allowed."""
    found = []
    if model.trust_remote_code and model.backend != "diffusers":
        message = f"model.trust_remote_code: {model.pipeline_class} runs natively, without code of the checkpoint's own"
        found.append(Problem("model.trust_remote_code", message))
    elif model.trust_remote_code and (model.hub_id is None or not COMMIT.fullmatch(model.revision or "")):
        message = "model.trust_remote_code: only for a hub id with model.revision pinned to a commit of 40 hex digits"
        found.append(Problem("model.trust_remote_code", message))
    call = foreign_call(model.pipeline_class) if model.diffusers_kwargs else None
    taken = call.arguments if call is not None else {}
    for key in model.diffusers_kwargs:
        if key not in taken:
            close = difflib.get_close_matches(key, taken, n=1)
            offer = f"; did you mean {close[0]!r}?" if close else ""
            message = f"model.diffusers_kwargs.{key}: {model.pipeline_class} takes no such argument{offer}"
            found.append(Problem(f"model.diffusers_kwargs.{key}", message))
    return found


def _plain(value: Any) -> Any:
    """A default as a recipe value; what only diffusers can compute is left to it."""
    return value if isinstance(value, int | float | str) else None


@lru_cache(maxsize=32)
def foreign_call(class_name: str) -> ForeignCall | None:
    """The call of a pipeline class, its own or the nearest one it inherits."""
    for definition in _ancestry(class_name):
        for entry in definition.body:
            if isinstance(entry, ast.FunctionDef) and entry.name == "__call__":
                makes = _makes(entry)
                return None if makes is None else ForeignCall(dict(_arguments(entry.args)), makes)
    return None


def _arguments(arguments: ast.arguments) -> Iterator[tuple[str, Any]]:
    placed = [*arguments.posonlyargs, *arguments.args]
    defaults = [*([None] * (len(placed) - len(arguments.defaults))), *arguments.defaults]
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    for argument, default in [*zip(placed, defaults, strict=True), *named]:
        yield argument.arg, ... if default is None else _literal(default)


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _makes(call: ast.FunctionDef) -> Makes | None:
    """By the field of the output object that it returns."""
    for node in ast.walk(call):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Call):
            for keyword in node.value.keywords:
                if (makes := RESULTS.get(keyword.arg or "")) is not None:
                    return makes
    return None


def _ancestry(class_name: str) -> Iterator[ast.ClassDef]:
    """The class and its bases inside diffusers' pipelines, nearest first."""
    waiting, seen = [class_name], set[str]()
    while waiting:
        name = waiting.pop(0)
        definition = None if name in seen else _find_class(name)
        seen.add(name)
        if definition is not None:
            yield definition
            waiting += [base.id for base in definition.bases if isinstance(base, ast.Name)]


def _find_class(name: str) -> ast.ClassDef | None:
    """Where diffusers' pipelines define a class. The text is searched first: parsing every file would take seconds."""
    spec = importlib.util.find_spec("diffusers")
    if spec is None or spec.origin is None:
        return None
    for path in sorted((Path(spec.origin).parent / "pipelines").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if f"class {name}(" in text:
            for node in ast.parse(text).body:
                if isinstance(node, ast.ClassDef) and node.name == name:
                    return node
    return None

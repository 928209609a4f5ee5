"""The perf dump that SGLang Diffusion writes, as it is. Source: its `runtime/utils/perf_logger.py`, release 0.5.23."""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z][a-z0-9]*|[A-Z]+|[a-z0-9]+")


class Lenient(BaseModel):
    """Another program's format: what we do not know of it is passed over."""

    model_config = ConfigDict(extra="ignore")


class BareStage(Lenient):
    """One stage; SGLang calls them steps."""

    name: str
    duration_ms: float = Field(ge=0)


class BareStep(Lenient):
    """One denoising step."""

    step: int = Field(ge=0)
    duration_ms: float = Field(ge=0)


class BareDump(Lenient):
    """One request. Memory in MiB. Raises ValueError where nothing was timed."""

    timestamp: str = ""
    request_id: str = ""
    commit_hash: str = "N/A"
    tag: str | None = None
    total_duration_ms: float = Field(gt=0)
    steps: list[BareStage] = Field(min_length=1)
    denoise_steps_ms: list[BareStep] = []
    memory_checkpoints: dict[str, dict[str, float]] = {}
    meta: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_timed(self) -> "BareDump":
        if not any(stage.duration_ms for stage in self.steps):
            raise ValueError("no stage has a time")
        return self


def stage_name(name: str) -> str:
    """`TextEncodingStage` -> `text_encoding`: our vocabulary for the standard stages, snake case for the others."""
    words = [word.lower() for word in WORD.findall(name)]
    return "_".join(words[:-1] if len(words) > 1 and words[-1] == "stage" else words) or name

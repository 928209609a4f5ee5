"""The events a worker sends while it runs, one JSON object a line: the one schema of that stream.

The worker writes plain dictionaries and imports nothing from here; `difftool schema events` publishes this page.
Unknown fields are kept, so that a reader of `generate --json` sees all that the worker said.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from difftool.errors import Problem


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")

    rank: int | None = None  # which of many sent it
    arm: str | None = None  # of a race: whose it is


class Started(_Event):
    """The worker process runs; nothing is loaded yet."""

    event: Literal["started"] = "started"
    pid: int


class LoadStarted(_Event):
    """Weights are about to be read."""

    event: Literal["load_started"] = "load_started"


class ComponentLoaded(_Event):
    """One component is in memory. `detail` is for people: `2.8M bf16 -> fp32`."""

    event: Literal["component_loaded"] = "component_loaded"
    name: str
    detail: str = ""
    seconds: float = Field(ge=0)


class Loaded(_Event):
    """Every component is in memory and every transform of the plan is applied."""

    event: Literal["loaded"] = "loaded"
    seconds: float = Field(ge=0)


class ItemStarted(_Event):
    """One item begins. `item` is its position among the run's `items`, `output` counts the outputs of its prompt,
    `sample` the repeats.
    """

    event: Literal["item_started"] = "item_started"
    item: int = Field(ge=0)
    items: int = Field(ge=1)
    id: str
    output: int = Field(ge=0)
    prompt: str
    seed: int
    phase: Literal["warmup", "sample"]
    sample: int = Field(ge=0)
    steps: int = Field(ge=0)


class StageStarted(_Event):
    """A stage of the pipeline begins."""

    event: Literal["stage_started"] = "stage_started"
    item: int = Field(ge=0)
    stage: str


class Step(_Event):
    """A denoising step is done; `step` counts from 0 up to `steps`, as in the perf dump."""

    event: Literal["step"] = "step"
    item: int = Field(ge=0)
    step: int = Field(ge=0)
    steps: int = Field(ge=0)


class StageFinished(_Event):
    """A stage is done. `ms` is its device time, synchronised."""

    event: Literal["stage_finished"] = "stage_finished"
    item: int = Field(ge=0)
    stage: str
    ms: float = Field(ge=0)


class SaveStarted(_Event):
    """The item is encoded and written; its outputs follow."""

    event: Literal["save_started"] = "save_started"
    item: int = Field(ge=0)
    stage: Literal["save"] = "save"


class Output(_Event):
    """A media file has its final name and its final bytes, `size` of them. `kept`: an earlier start made it."""

    event: Literal["output"] = "output"
    item: int = Field(ge=0)
    path: str
    sha256: str
    size: int = Field(ge=0)
    kept: bool = False


class ItemFinished(_Event):
    """One item is done. `total_ms` is its forward, without load and save."""

    event: Literal["item_finished"] = "item_finished"
    item: int = Field(ge=0)
    total_ms: float = Field(ge=0)


class ItemFailed(_Event):
    """One item failed and, under `--keep-going`, the next one begins."""

    event: Literal["item_failed"] = "item_failed"
    item: int = Field(ge=0)
    item_id: str
    kind: str
    message: str
    hint: str | None = None
    stage: str | None = None
    traceback: str


class Perf(_Event):
    """The perf dump is written."""

    event: Literal["perf"] = "perf"
    path: str


class Heartbeat(_Event):
    """Progress that no other event shows. Sent by the work itself, never by a timer: a timer would hide a hang."""

    event: Literal["heartbeat"] = "heartbeat"


class Error(_Event):
    """The run is over and failed.

    `kind` names a class of `difftool.errors`, or any exception: an internal error, unless the exit code says memory.
    """

    event: Literal["error"] = "error"
    kind: str
    exit_code: int
    message: str
    hint: str | None = None
    stage: str | None = None
    item: int | None = None
    item_id: str | None = None
    traceback: str | None = None
    problems: list[Problem] | None = None  # every one, where the recipe is wrong
    time: float | None = None  # of many ranks: seconds since the epoch, to find the first failure
    lost_peer: bool | None = None  # of many ranks: the failure is that another one is gone


class TurnFinished(_Event):
    """Of a race: an arm made every item once more; `round` 0 is the last warm-up. `total_ms` is their forward."""

    event: Literal["turn_finished"] = "turn_finished"
    round: int = Field(ge=0)
    total_ms: float = Field(ge=0)


class Compared(_Event):
    """Of a race: it is over. `dumps` are the arms' perf dumps, `report` is `difftool.compare/v1`, null for one arm."""

    event: Literal["compared"] = "compared"
    dumps: dict[str, str]
    report: dict[str, Any] | None = None


class Finished(_Event):
    """The run is over and everything is written: what the process does after this cannot fail the run."""

    event: Literal["finished"] = "finished"


Event = Annotated[
    Started
    | LoadStarted
    | ComponentLoaded
    | Loaded
    | ItemStarted
    | StageStarted
    | Step
    | StageFinished
    | SaveStarted
    | Output
    | ItemFinished
    | ItemFailed
    | Perf
    | Heartbeat
    | Error
    | TurnFinished
    | Compared
    | Finished,
    Field(discriminator="event"),
]

_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(line: bytes | str) -> Event:
    """One line of the stream. Raises ValueError (pydantic's ValidationError is one) where it is no event."""
    return _ADAPTER.validate_json(line)


def json_schema() -> dict[str, Any]:
    """JSON Schema of one line of the stream."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "difftool events: one JSON object a line",
        **_ADAPTER.json_schema(),
    }

"""A small plan, its records, and workers that end in every way."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from difftool import launch
from difftool.launch.events import Event
from difftool.planning.plan import Degrees, Item, ModelPlan, OutputPlan, Plan

STANDIN = Path(__file__).with_name("standin_worker.py")


def small_plan(folder: Path, **changes: Any) -> Plan:
    """Two red and blue pictures by the embedded model, on one rank."""
    sampling = {"height": 64, "width": 64, "num_inference_steps": 2}
    items = tuple(
        Item(index=i, output=0, id=name, prompt=f"a {name} circle", seed=7 + i, sampling=sampling)
        for i, name in enumerate(("red", "blue"))
    )
    values: dict[str, Any] = {
        "name": "circles",
        "task": "t2i",
        "model": ModelPlan(
            name="builtin:shapes-image",
            hub_id=None,
            folder="/nowhere",
            revision=None,
            family="flux1",
            pipeline_class="FluxPipeline",
            builtin=True,
        ),
        "degrees": Degrees(num_gpus=1, dp=1, cfg=1, ring=1, ulysses=1, tp=1, hsdp="none"),
        "device": "cpu",
        "stages": {},
        "items": items,
        "pictures": {},
        "output": OutputPlan(
            dir=str(folder),
            file=None,
            name="{id}",
            format="png",
            quality=None,
            embed_metadata=True,
            on_collision="suffix",
            return_frames=False,
            save=True,
        ),
        "keep_going": False,
        "warmup": 0,
        "repeats": 1,
        "tag": None,
        "threads": 2,
        "stall_timeout_s": 60.0,
        "choices": (),
        "recipe": {
            "schema": "difftool/v1",
            "model": {"path": "builtin:shapes-image"},
            "stages": {},
            "cache": {"backend": "none"},
            "sampling": {"prompt": ["a red circle", "a blue circle"]},
        },
        "provenance": {},
        "recipe_sha256": "0" * 64,
        "workload_sha256": "1" * 64,
    }
    return Plan(**{**values, **changes})


@dataclass
class Workshop:
    """Runs the small plan with a stand-in worker and keeps what was heard."""

    folder: Path
    events: list[Event] = field(default_factory=list)
    records: Path | None = None

    def run(self, behaviour: str, *, verbose: bool = False, **changes: Any) -> launch.RunResult:
        plan = small_plan(self.folder, **changes)
        self.records = launch.open_records(plan)
        worker = (sys.executable, str(STANDIN), behaviour)
        return launch.run(plan, self.records, on_event=self.events.append, verbose=verbose, worker=worker)

    def take_up(self, behaviour: str, **changes: Any) -> launch.RunResult:
        """Another start of the same run."""
        assert self.records is not None
        self.events.clear()
        plan = small_plan(self.folder, **changes)
        launch.take_up(plan, self.records)
        worker = (sys.executable, str(STANDIN), behaviour)
        return launch.run(plan, self.records, on_event=self.events.append, worker=worker)

    def journal(self) -> list[dict[str, Any]]:
        assert self.records is not None
        return [json.loads(line) for line in (self.records / "journal.jsonl").read_text().splitlines()]

    def names(self) -> list[str]:
        return [event.event for event in self.events]


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "outputs")


@pytest.fixture
def make_small_plan() -> Callable[..., Plan]:
    return small_plan

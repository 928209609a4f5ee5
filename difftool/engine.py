"""Runs a plan in this process: assemble, warm up, run every item, save it, write the perf dump."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from difftool.errors import DifftoolError, OutputError
from difftool.media.save import save_item
from difftool.parallel.group import barrier, joined, lost_peer
from difftool.parallel.world import World
from difftool.pipeline.assemble import Assembled, assemble
from difftool.pipeline.batch import Batch
from difftool.pipeline.stage import Context
from difftool.planning.plan import Item, Plan
from difftool.platforms import Platform, current
from difftool.profiling.gathering import gather_measurements, leave_measurements
from difftool.profiling.recording import Recording, build_dump
from difftool.profiling.timers import Timer
from difftool.report.perf import Failure, write_perf

REQUEST_KEYS = ("height", "width", "num_inference_steps", "max_sequence_length", "guidance_scale", "true_cfg_scale")


class Progress(Protocol):
    """Where a run's events go; it knows the stage and item that they have reached."""

    stage: str | None
    item: int | None

    def __call__(self, event: str, **values: Any) -> None:
        """Reports one event; never synchronises with the device."""


def make_batch(item: Item) -> Batch:
    """The batch of one item: its values under the names the stages read."""
    values = item.sampling
    negative = values.get("negative_prompt")
    return Batch(
        prompt=[item.prompt],
        negative_prompt=None if negative is None else [negative],
        seeds=[item.seed],
        schedule=values.get("scheduler") or {},
        extra=values.get("extra") or {},
        **{key: values[key] for key in REQUEST_KEYS if key in values},
    )


def run_plan(plan_file: Path, notify: Progress, process_started: float, world: World) -> None:
    """Runs this rank's share of the plan in `plan_file`; one rank leaves `perf.json` beside it, of a failed run too.

    `notify(event, **values)` reports progress; `process_started` is a perf_counter reading.
    """
    plan = Plan.model_validate_json(plan_file.read_bytes())
    records = plan_file.parent
    torch.set_num_threads(plan.threads)
    recording = Recording(plan=plan, run_id=records.name, process_started=process_started, rank=world.rank)
    try:
        platform = current(plan.device)
        recording.platform = platform
        with joined(world, platform.name):
            assembled = _load(plan, platform, notify, recording)
            _run_items(plan, world.share(plan.items), assembled, platform, notify, recording)
            leave_measurements(recording, world)
            barrier(world)
        gather_measurements(recording, world)
    except BaseException as error:
        message = error.message if isinstance(error, DifftoolError) else str(error)
        recording.failure = Failure(
            kind=type(error).__name__, message=message or type(error).__name__, stage=notify.stage, item=notify.item
        )
        with suppress(OutputError):  # the first error is the one to report
            if not (_another_failed(error, world) and (world.rank or (records / "perf.json").exists())):
                write_perf(records / "perf.json", build_dump(recording))
        raise
    if world.first:
        write_perf(records / "perf.json", build_dump(recording))
        notify("perf", path=str(records / "perf.json"))


def _another_failed(error: BaseException, world: World) -> bool:
    """Whether this rank ends because another one failed, whose dump is the one to keep."""
    return world.size > 1 and (isinstance(error, KeyboardInterrupt) or lost_peer(error))


def _load(plan: Plan, platform: Platform, notify: Progress, recording: Recording) -> Assembled:
    notify("load_started")
    start = time.perf_counter()
    assembled = assemble(plan, platform, notify)
    platform.synchronize()
    recording.load_ms = (time.perf_counter() - start) * 1e3
    recording.effective = assembled.effective
    notify("loaded", seconds=recording.load_ms / 1e3)
    return assembled


def _run_items(
    plan: Plan,
    items: Sequence[Item],
    assembled: Assembled,
    platform: Platform,
    notify: Progress,
    recording: Recording,
) -> None:
    timer = Timer(platform)
    ctx = Context(assembled.components, timer, notify)
    for number in range(plan.warmup if items else 0):
        _forward(plan, items[0], assembled, ctx, phase="warmup", repeat=number)
        recording.warmup_ms.append(timer.timings.total)
    recording.cold_start_ms = (time.perf_counter() - recording.process_started) * 1e3
    for repeat in range(plan.repeats):
        for item in items:
            batch = _forward(plan, item, assembled, ctx, phase="sample", repeat=repeat)
            notify("save_started", stage="save")
            start = time.perf_counter()
            # every repeat makes the same picture: it is written once
            saved = save_item(plan, item, batch.pixels[0], recording.run_id) if repeat == 0 else []
            recording.add(item, repeat, timer.timings, saved, (time.perf_counter() - start) * 1e3)
            for file in saved:
                notify("output", path=str(file.path), sha256=file.sha256)
            notify("item_finished", item=item.index, total_ms=timer.timings.total)


def _forward(plan: Plan, item: Item, assembled: Assembled, ctx: Context, *, phase: str, repeat: int) -> Batch:
    batch = make_batch(item)
    ctx.notify(
        "item_started",
        item=item.index,
        items=len(plan.items),
        id=item.id,
        prompt=item.prompt,
        seed=item.seed,
        phase=phase,
        sample=repeat,
        steps=batch.num_inference_steps,
    )
    return assembled.pipeline(batch, ctx)

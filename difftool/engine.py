"""Runs a plan in this process: assemble, warm up, run every item, save it, write the perf dump."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from difftool.errors import DifftoolError, OutputError
from difftool.media.save import Saved, save_item
from difftool.parallel.group import barrier, joined, lost_peer
from difftool.parallel.world import World
from difftool.pipeline.assemble import Assembled, assemble
from difftool.pipeline.batch import Batch
from difftool.pipeline.config import PipelineConfig
from difftool.pipeline.encodings import Encodings
from difftool.pipeline.stage import Context
from difftool.planning.plan import Item, Plan
from difftool.planning.todo import TODO_FILE, Todo
from difftool.platforms import Platform, current
from difftool.profiling.gathering import gather_measurements, leave_measurements
from difftool.profiling.recording import Recording, build_dump
from difftool.profiling.timers import Timer
from difftool.report.perf import Failure, write_perf
from difftool.stages.text_encoding import encoding_key, texts_to_encode

REQUEST_KEYS = ("height", "width", "num_inference_steps", "max_sequence_length", "guidance_scale", "true_cfg_scale")


class Progress(Protocol):
    """Where a run's events go; it knows the stage and item that they have reached."""

    stage: str | None
    item: int | None

    def __call__(self, event: str, **values: Any) -> None:
        """Reports one event; never synchronises with the device."""

    def attempt(self, make: Callable[[], object], *, keep_going: bool) -> Mapping[str, Any] | None:
        """Makes one item. None, or how it failed (the fields of `Failure`) where the run goes on without it."""


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
    """Makes this rank's share of the items that `todo.json`, beside the plan, leaves to make.

    One rank leaves `perf.json` there, of a failed run too.

    `notify(event, **values)` reports progress; `process_started` is a perf_counter reading.
    """
    plan = Plan.model_validate_json(plan_file.read_bytes())
    records = plan_file.parent
    todo = Todo.model_validate_json((records / TODO_FILE).read_bytes())
    torch.set_num_threads(plan.threads)
    recording = Recording(plan=plan, todo=todo, run_id=records.name, process_started=process_started, rank=world.rank)
    try:
        platform = current(plan.device)
        recording.platform = platform
        with joined(world, platform.name):
            assembled = _load(plan, platform, notify, recording)
            _run_items(plan, todo, world.share(todo.positions()), assembled, notify, recording)
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
    plan: Plan, todo: Todo, positions: Sequence[int], assembled: Assembled, notify: Progress, recording: Recording
) -> None:
    assert recording.platform is not None
    timer = Timer(recording.platform)
    ctx = Context(assembled.components, timer, notify)
    for number in range(plan.warmup if positions else 0):
        warm_up = partial(_forward, plan, positions[0], assembled, ctx, phase="warmup", repeat=number)
        if not _attempt(warm_up, plan, notify, recording):
            break
        recording.warmup_ms.append(timer.timings.total)
    recording.cold_start_ms = (time.perf_counter() - recording.process_started) * 1e3
    if plan.repeats == 1:  # else every sample pays for its own encoding, or repeats would not measure the same
        ctx = replace(ctx, encodings=_encodings(plan, positions, assembled.config))
    for repeat in range(plan.repeats):
        failed = {failure.item for failure in recording.failed_items}
        for position in [position for position in positions if position not in failed]:
            make = partial(_run_item, plan, todo, position, assembled, ctx, recording, repeat=repeat)
            _attempt(make, plan, notify, recording)


def _attempt(make: Callable[[], object], plan: Plan, notify: Progress, recording: Recording) -> bool:
    """Whether it succeeded; a failure that does not end the run is recorded."""
    failure = notify.attempt(make, keep_going=plan.keep_going)
    if failure is not None:
        recording.failed_items.append(Failure(**failure))
    return failure is None


def _encodings(plan: Plan, positions: Sequence[int], config: PipelineConfig) -> Encodings:
    """Room for the text encodings that several of these items need."""
    batches = [make_batch(plan.items[position]) for position in positions]
    return Encodings(encoding_key(config, batch, text) for batch in batches for text in texts_to_encode(config, batch))


def _run_item(
    plan: Plan, todo: Todo, position: int, assembled: Assembled, ctx: Context, recording: Recording, *, repeat: int
) -> None:
    """One sample of one item; its file is written by the first, as every repeat makes the same."""
    if ctx.encodings is not None:
        ctx.encodings.start_item()
    batch = _forward(plan, position, assembled, ctx, phase="sample", repeat=repeat)
    reused = ctx.encodings.reused if ctx.encodings is not None else []
    ctx.notify("save_started", stage="save")
    start = time.perf_counter()
    saved = _save(plan, todo, position, batch) if repeat == 0 else []
    save_ms = (time.perf_counter() - start) * 1e3
    recording.add(position, repeat, ctx.timer.timings, saved, save_ms=save_ms, reused=reused)
    for file in saved:
        ctx.notify("output", path=str(file.path), sha256=file.sha256, size=file.size)
    ctx.notify("item_finished", item=position, total_ms=ctx.timer.timings.total)


def _save(plan: Plan, todo: Todo, position: int, batch: Batch) -> list[Saved]:
    task = todo.tasks[position]
    path = Path(plan.output.dir) / task.name
    return save_item(plan, plan.items[position], batch.pixels[0], path, replace=task.replace)


def _forward(plan: Plan, position: int, assembled: Assembled, ctx: Context, *, phase: str, repeat: int) -> Batch:
    item = plan.items[position]
    batch = make_batch(item)
    ctx.notify(
        "item_started",
        item=position,
        items=len(plan.items),
        id=item.id,
        output=item.output,
        prompt=item.prompt,
        seed=item.seed,
        phase=phase,
        sample=repeat,
        steps=batch.num_inference_steps,
    )
    return assembled.pipeline(batch, ctx)

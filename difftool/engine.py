"""Runs plans in this process: assemble once, warm up, run every item, save it, write the perf dump."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from difftool.acceleration.compilation import spent_ms
from difftool.errors import DifftoolError, OutputError
from difftool.facts import AXES
from difftool.media.condition import read_picture
from difftool.media.save import Saved, save_item, save_raw
from difftool.parallel.group import joined, lost_peer
from difftool.parallel.mesh import Mesh
from difftool.parallel.world import World
from difftool.pipeline.assemble import Assembled, assemble
from difftool.pipeline.batch import Batch
from difftool.pipeline.encodings import Encodings
from difftool.pipeline.flops import block_shares, denoiser_calls, item_flops
from difftool.pipeline.stage import Context
from difftool.planning.communication import Forward, joins_branches
from difftool.planning.loading import loading
from difftool.planning.naming import nsys_report, recorded_file
from difftool.planning.plan import Item, Plan
from difftool.planning.todo import TODO_FILE, Todo, raw_file
from difftool.platforms.base import Platform, current
from difftool.platforms.host import undisturbed
from difftool.platforms.memory_history import check_memory_snapshot, memory_history
from difftool.profiling.exhausted import memory_told
from difftool.profiling.gathering import gather_measurements
from difftool.profiling.judges import open_judges
from difftool.profiling.recording import Recording, build_dump
from difftool.profiling.reuse import check_hits
from difftool.profiling.telemetry import Watch, watching
from difftool.profiling.timers import Timer
from difftool.profiling.tracing import TracingTimer
from difftool.report.peaks import peak_of_ranks
from difftool.report.perf import Failure, write_perf
from difftool.report.reuse import CacheUse, with_shares
from difftool.stages.text_encoding import encoding_key, texts_to_encode

REQUEST_KEYS = ("height", "width", "num_frames", "fps", "num_inference_steps", "max_sequence_length") + (
    ("guidance_scale", "guidance_scale_2", "true_cfg_scale", "boundary_ratio")
)


class Progress(Protocol):
    """Where a run's events go; it knows the stage and item that they have reached. Of the ranks that make an item
    together only the one that `leads` is heard.
    """

    stage: str | None
    item: int | None
    leads: bool

    def __call__(self, event: str, **values: Any) -> None:
        """Reports one event; never synchronises with the device."""

    def attempt(self, make: Callable[[], object], *, keep_going: bool) -> Mapping[str, Any] | None:
        """Makes one item. None, or how it failed (the fields of `Failure`) where the run goes on without it."""


def make_batch(item: Item) -> Batch:
    """The batch of one item: its values under the names the stages read."""
    values = item.sampling
    negative, last = values.get("negative_prompt"), values.get("last_image")
    return Batch(
        prompt=[item.prompt],
        negative_prompt=None if negative is None else [negative],
        seeds=[item.seed],
        image=tuple(read_picture(path) for path in values.get("image") or ()),
        last_image=None if last is None else read_picture(last),
        schedule=values.get("scheduler") or {},
        extra=values.get("extra") or {},
        **{key: values.get(key) for key in REQUEST_KEYS},
    )


@dataclass
class Kept:
    """What one plan leaves for the next of this process: its place among the ranks, until `ends` is closed, and the
    pipeline that was loaded for `loading`, the same for every one of them.
    """

    ends: ExitStack
    loading: Mapping[str, Any] | None = None
    assembled: Assembled | None = None
    mesh: Mesh | None = None
    watch: Watch | None = None


def run_plan(plan_file: Path, notify: Progress, started: float, world: World, kept: Kept) -> None:
    """Makes this rank's share of the items that `todo.json`, beside the plan, leaves to make.

    One rank leaves `perf.json` there, of a failed run too.

    `notify(event, **values)` reports progress; `started`, a perf_counter reading, is when the process started or, of
    a later plan, when it came.
    """
    plan = Plan.model_validate_json(plan_file.read_bytes())
    records = plan_file.parent
    todo = Todo.model_validate_json((records / TODO_FILE).read_bytes())
    torch.set_num_threads(plan.threads)
    recording = Recording(plan=plan, todo=todo, run_id=records.name, started=started, rank=world.rank)
    try:
        if todo.repeats is None or 0 in todo.repeats:  # the others' outputs are not looked at
            recording.judges = open_judges(plan.quality)
        platform = current(plan.device)
        recording.platform = platform
        if plan.profile is not None and plan.profile.memory_snapshot:
            check_memory_snapshot(platform.name)
        if kept.watch is None:
            kept.watch = kept.ends.enter_context(watching(platform))
        if kept.assembled is None:
            kept.ends.enter_context(joined(world, platform.name))
            degrees = {axis: getattr(plan.degrees, axis) for axis in AXES}
            kept.mesh = Mesh(degrees, world, sharing=plan.degrees.sharing)
            notify.leads = kept.mesh.leads
            kept.loading, kept.assembled = loading(plan), _load(plan, platform, notify, recording, kept.mesh)
        else:
            assert kept.loading == loading(plan), "another model came to a worker that has one"
            kept.assembled = kept.assembled.with_loras(plan, notify)
        recording.effective = kept.assembled.effective
        recording.peak_flops = _peak_flops(plan, kept.assembled, platform)
        assert kept.mesh is not None
        _run_items(plan, todo, kept.assembled, kept.mesh, notify, recording, kept.watch)
        recording.effective = kept.assembled.told()
        gather_measurements(recording, world, leads=kept.mesh.leads)
    except BaseException as error:
        message = error.message if isinstance(error, DifftoolError) else str(error)
        recording.failure = Failure(
            kind=type(error).__name__, message=message or type(error).__name__, stage=notify.stage, item=notify.item
        )
        # an agent ends the ranks that another one leaves behind; the first error is the one to report
        with undisturbed(), suppress(OutputError):
            if not (_another_failed(error, world) and (world.rank or (records / "perf.json").exists())):
                write_perf(records / "perf.json", build_dump(recording))
        raise
    if world.first:
        write_perf(records / "perf.json", build_dump(recording))
        notify("perf", path=str(records / "perf.json"))


def _another_failed(error: BaseException, world: World) -> bool:
    """Whether this rank ends because another one failed, whose dump is the one to keep."""
    return world.size > 1 and (isinstance(error, KeyboardInterrupt) or lost_peer(error))


def _load(plan: Plan, platform: Platform, notify: Progress, recording: Recording, mesh: Mesh) -> Assembled:
    notify("load_started")
    start = time.perf_counter()
    if plan.budget is not None:
        platform.limit_memory(plan.budget.bytes)
    with memory_told(plan, platform, notify):
        assembled = assemble(plan, platform, notify, mesh)
    platform.synchronize()
    recording.load_ms = (time.perf_counter() - start) * 1e3
    notify("loaded", seconds=recording.load_ms / 1e3)
    return assembled


def _run_items(
    plan: Plan, todo: Todo, assembled: Assembled, mesh: Mesh, notify: Progress, recording: Recording, watch: Watch
) -> None:
    """The items of this rank's replica. Where replicas share weights, all run as many as the one that has most."""
    assert recording.platform is not None
    timer, positions = Timer(recording.platform), mesh["dp"].share(todo.positions())
    ctx = Context(assembled.components, timer, notify, mesh=mesh, cache=assembled.cache)
    ctx = replace(ctx, joined=assembled.joined, videos=assembled.videos, residence=assembled.residence)
    missing = mesh["dp"].sizes(len(todo.positions()))[0] - len(positions) if mesh.in_step else 0
    warmup = plan.warmup if todo.warmup is None else todo.warmup
    if "compile" in assembled.effective and recording.load_ms:
        warmup = max(warmup, 1)  # the first forward compiles, and is no sample
    compiled_ms = spent_ms()
    # with repeats, every sample pays for its own encoding, or they would not measure the same
    encodings = _encodings(plan, positions, assembled) if plan.repeats == 1 else None
    if warmup or encodings is None or not encodings.complete:
        assembled.components.bring()
    recording.weight_bytes = assembled.weight_bytes()
    for number in range(warmup if positions else 0):
        warm_up = partial(_forward, plan, positions[0], assembled, ctx, phase="warmup", repeat=number)
        if not _attempt(warm_up, plan, notify, recording):
            break
        recording.warmup_ms.append(timer.timings.total)
    _fill(plan, todo, assembled, ctx, warmup if missing and not positions else 0)
    recording.cold_start_ms = (time.perf_counter() - recording.started) * 1e3
    recording.compile_ms = spent_ms() - compiled_ms
    ctx = replace(ctx, encodings=encodings)
    for repeat in range(plan.repeats) if todo.repeats is None else todo.repeats:
        failed = {failure.item for failure in recording.failed_items}
        for position in [position for position in positions if position not in failed]:
            make = partial(_run_item, plan, todo, position, assembled, ctx, recording, watch, repeat=repeat)
            _attempt(make, plan, notify, recording)
        _fill(plan, todo, assembled, ctx, missing)
    recording.late_compile_ms = spent_ms() - compiled_ms - recording.compile_ms


def _fill(plan: Plan, todo: Todo, assembled: Assembled, ctx: Context, count: int) -> None:
    """Makes an item so many times and forgets it: others wait for the weights that its forwards gather."""
    for _ in range(count):

        def alive(event: str, **values: Any) -> None:
            ctx.notify("heartbeat")

        alone = replace(ctx, timer=Timer(ctx.timer.platform), notify=alive, encodings=None)
        assembled.pipeline(make_batch(plan.items[todo.positions()[0]]), alone)


def _attempt(make: Callable[[], object], plan: Plan, notify: Progress, recording: Recording) -> bool:
    """Whether it succeeded; a failure that does not end the run is recorded."""
    platform = recording.platform
    assert platform is not None

    def told() -> None:
        with memory_told(plan, platform, notify):
            make()

    failure = notify.attempt(told, keep_going=plan.keep_going)
    if failure is not None:
        recording.failed_items.append(Failure(**failure))
        platform.free_memory()  # what the failed one had is not to be missing for the next
    return failure is None


def _encodings(plan: Plan, positions: Sequence[int], assembled: Assembled) -> Encodings | None:
    """Room for the text encodings that several of these items need; None for a pipeline that diffusers runs."""
    if (config := assembled.config) is None:
        return None
    batches = (make_batch(plan.items[position]) for position in positions)  # their pictures are held one by one
    wanted = (encoding_key(config, batch, text) for batch in batches for text in texts_to_encode(config, batch))
    return Encodings(wanted, shelf=assembled.prompt_embeds)


def _run_item(
    plan: Plan,
    todo: Todo,
    position: int,
    assembled: Assembled,
    ctx: Context,
    recording: Recording,
    watch: Watch,
    *,
    repeat: int,
) -> None:
    """One sample of one item; its file is written by the first, as every repeat makes the same."""
    if ctx.encodings is not None:
        ctx.encodings.start_item()
    ctx = replace(ctx, timer=_timer(plan, ctx, recording))
    snapshot = _snapshot_file(plan, recording)
    ctx.mesh.forget_traffic()
    watch.start()
    with memory_history(snapshot):
        batch = _forward(plan, position, assembled, ctx, phase="sample", repeat=repeat)
    telemetry = watch.read()
    if recording.profile is None and ctx.timer.profile is not None:
        recording.keep_profile(ctx.timer.profile, snapshot)
    recording.sent(ctx.mesh.traffic())
    reused = ctx.encodings.reused if ctx.encodings is not None else []
    calls = _calls(assembled, plan, position, batch)
    use = _reuse(assembled, recording, calls, position, repeat)
    flops = item_flops(calls, part=1.0 if use is None else use.computed_part)
    ctx.notify("save_started", stage="save")
    start = time.perf_counter()
    saved = _save(plan, todo, position, batch) if repeat == 0 and ctx.mesh.leads else []
    save_ms = (time.perf_counter() - start) * 1e3
    measured = {"save_ms": save_ms, "telemetry": telemetry, "reused": reused, "flops": flops}
    kinds = () if use is None else use.kinds
    recording.add(position, repeat, ctx.timer.timings, saved, **measured, kinds=kinds)
    for file in saved:
        ctx.notify("output", path=str(file.path), sha256=file.sha256, size=file.size)
    if repeat == 0 and ctx.mesh.leads:
        recording.examine(position, batch.pixels[0])
    ctx.notify("item_finished", item=position, total_ms=ctx.timer.timings.total)


def _timer(plan: Plan, ctx: Context, recording: Recording) -> Timer:
    """The context's own or, where a run is to be profiled, one that records: the first item, or marks for `nsys`."""
    profile, platform = plan.profile, ctx.timer.platform
    parts = {"modules": ctx.components.modules, "mesh": ctx.mesh}
    if profile is not None and profile.tool == "nsys":
        from difftool.profiling.marking import MarkingTimer  # its package is asked for with --tool nsys alone

        return MarkingTimer(platform, report=nsys_report(plan, recording.run_id), **parts)
    if profile is None or recording.profile is not None:
        return ctx.timer
    file = partial(recorded_file, plan, recording.run_id)
    return TracingTimer(platform, profile, rank=recording.rank, file=file, **parts)


def _snapshot_file(plan: Plan, recording: Recording) -> Path | None:
    """Where the memory of the first item is told, if that is asked for."""
    if plan.profile is None or not plan.profile.memory_snapshot or recording.profile is not None:
        return None
    return recorded_file(plan, recording.run_id, f"memory-global-rank{recording.rank}.pickle")


def _calls(assembled: Assembled, plan: Plan, position: int, batch: Batch) -> tuple[Forward, ...]:
    """The denoiser's forwards of an item that was made, as its family counts them; nothing where it does not, or where
    kernels leave out parts of a video.
    """
    if (config := assembled.config) is None or assembled.videos:
        return ()
    joined = assembled.joined and joins_branches(plan.degrees)
    return denoiser_calls(config, assembled.components, batch, plan.items[position].sampling, joined=joined)


def _reuse(
    assembled: Assembled, recording: Recording, calls: Sequence[Forward], position: int, repeat: int
) -> CacheUse | None:
    """What the caches did for the sample, which is kept; None where there are none. Raises PlanError where they did
    less than was asked for.
    """
    if assembled.cache is None:
        return None
    use = with_shares(assembled.cache.used(), block_shares(calls[0].anatomy) if calls else None)
    recording.caches.append(use.model_copy(update={"item": position, "repeat": repeat}))
    check_hits(use, recording.plan.recipe["cache"])
    return use


def _peak_flops(plan: Plan, assembled: Assembled, platform: Platform) -> float | None:
    """What the ranks that make an item could compute a second at most, in their denoiser's precision; None where that
    is not published, and for quantized layers, whose peak is another.
    """
    if assembled.config is None or "quantization" in assembled.effective:
        return None
    names = [name for name in assembled.config.roles["denoising"] if getattr(assembled.components, name) is not None]
    used = {str(assembled.effective["precision"][name]) for name in names}
    return peak_of_ranks(str(platform.describe()["name"]), used, ranks=plan.degrees.num_gpus // plan.degrees.dp)


def _save(plan: Plan, todo: Todo, position: int, batch: Batch) -> list[Saved]:
    task = todo.tasks[position]
    path = Path(plan.output.dir) / task.name
    if todo.raw_dir is not None:
        save_raw(batch.pixels[0], raw_file(todo.raw_dir, position))
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

"""The Python interface: a session holds a recipe and a worker that keeps its model loaded between requests."""

import os
import shutil
import signal
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

from difftool import launch
from difftool.errors import DifftoolError, Problem, RecipeError
from difftool.launch.events import Event
from difftool.launch.living import LivingWorker
from difftool.launch.signals import SignalWatch
from difftool.planning.loras import nickname_of
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.plan import Plan, ProfilePlan
from difftool.planning.todo import raw_file
from difftool.recipe.load import Loaded, Override, lay_over, load_recipe
from difftool.recipe.sampling import PromptsFile
from difftool.recipe.schema import Recipe
from difftool.report.perf import KernelTime, PerfDump, read_perf

if TYPE_CHECKING:
    from PIL.Image import Image

OF_A_REQUEST = ("sampling", "quality.reference.dir")  # keys whose problems another request may not have

LoraPath: TypeAlias = str | os.PathLike[str] | None


@dataclass(frozen=True)
class Result:
    """What one `generate` made, in the order of the prompts and of each one's outputs.

    `images` holds a picture for every item of a model that makes pictures, `frames` a list of pictures for every video
    of one that makes videos; both are exact, whatever the format of the files. `paths` are the files, none unless the
    recipe has an `output` section. `perf` is the perf dump; `perf.quality` says whether they are worth the tier of the
    recipe, which raises nothing here.
    """

    images: "list[Image]"
    frames: "list[list[Image]]"
    paths: list[Path]
    seeds: list[int]
    perf: PerfDump


@dataclass(frozen=True)
class Profiled:
    """What one `profile` recorded of its first item, and its ordinary `result`, whose times hold the profiler's own.

    `traces` are a file of every rank, for https://ui.perfetto.dev; `kernels` the longest operations of the first rank,
    longest first, and `kinds_ms` where its time went, in milliseconds. `result.perf.profile` says which steps.
    """

    result: Result
    traces: list[Path]
    kernels: list[KernelTime]
    kinds_ms: dict[str, float]


def load(
    recipe: str | os.PathLike[str] | Mapping[str, object] | Recipe, overrides: Mapping[str, object] | None = None
) -> "Session":
    """Opens a session: `recipe` is what RECIPE may be on the command line, a `Recipe`, or a mapping of its keys.

    `overrides` are dotted keys, as for `--set`, with their values. Relative paths in a mapping and in `overrides` are
    relative to the current folder. The model is loaded by the first `generate`. Raises RecipeError with every problem
    outside `sampling`, which `generate` may change; WeightsError for a model folder that is not one.
    """
    given = overrides or {}
    laid = [Override(key, _plain(value), f"overrides[{key!r}]") for key, value in given.items()]
    return Session(load_recipe(_source(recipe), laid))


class Session:
    """A recipe and the worker that runs it, one request at a time; a context manager. Made by `load`.

    The worker ends with `close`, with the session object, and with this process, and takes all temporary files along.
    """

    def __init__(self, loaded: Loaded, *, worker: LivingWorker | None = None):
        self._loaded = loaded
        self._loras: list[Override] = []
        self._lora_paths: dict[str, str] = {}
        self._worker = worker or LivingWorker()
        self._count = 0
        self._turn_lock = threading.Lock()
        self._turn_of: int | None = None
        _check(loaded)
        self._folder = Path(tempfile.mkdtemp(prefix="difftool-session-"))
        self._end = weakref.finalize(self, _end, self._worker, self._folder, os.getpid())

    def generate(self, *, on_event: Callable[[Event], None] | None = None, **sampling: object) -> Result:
        """Makes the recipe's items, with the given keys of its `sampling` section in place of the recipe's own.

        `on_event` gets every event of the run, from this thread. While another thread generates, this one waits.
        Raises RecipeError, and what a run can end with: PlanError, WeightsError, OutOfMemoryError, WorkerCrashed,
        Stalled, OutputError. Ctrl-C ends the worker and raises KeyboardInterrupt. After any of them the session is
        usable; the next request loads the model again if the worker has ended.
        """
        with self._turn():
            folder, changes = self._next_folder(), _changes("generate", sampling)
            result, _ = self._made(changes, folder, on_event or _ignore)
            shutil.rmtree(folder, ignore_errors=True)
            return result

    def profile(
        self,
        steps: int | None = None,
        *,
        all_stages: bool = False,
        on_event: Callable[[Event], None] | None = None,
        **sampling: object,
    ) -> Profiled:
        """Does what `generate` does under torch's profiler, which records the first item of every rank: so many
        denoising steps after the first one, 5 unless given, or with `all_stages` everything.

        The traces lie in `output.dir` where the recipe has an `output` section, else in the session's temporary folder
        until it is closed. Raises what `generate` does, and RecipeError for a request that would record nothing.
        """
        recorded = _what_to_record(steps, all_stages=all_stages)
        with self._turn():
            folder, changes = self._next_folder(), _changes("profile", sampling)
            result, records = self._made(changes, folder, on_event or _ignore, recorded)
            profile = result.perf.profile
            assert profile is not None, records
            traces = [(records / trace.path).resolve() for trace in profile.traces]
            return Profiled(result, traces, profile.kernels, profile.kinds_ms)

    def set_lora(
        self,
        path: LoraPath | Sequence[LoraPath] = None,
        *,
        nickname: str | Sequence[str | None] | None = None,
        strength: float | Sequence[float] = 1.0,
        target: str | Sequence[str] = "all",
    ) -> None:
        """Merges these LoRAs from the next request on, in place of those before, into the model that is loaded.

        One, or a list of each; a single strength or target goes for all. A `path` is what `model.lora` takes; None for
        a nickname that was set before. Raises RecipeError, and WeightsError for a local file that is refused; that a
        file fits the model is known when the next request merges it.
        """
        with self._turn():
            entries = _lora_entries(path, nickname, strength, target, self._lora_paths)
            override = Override("model.lora", entries, "set_lora(…)")
            _check(lay_over(self._loaded, [override]))
            self._loras = [override]
            for entry in entries:
                path = str(entry["path"])
                self._lora_paths[str(entry["nickname"] or nickname_of(path))] = path

    def unset_lora(self) -> None:
        """Takes all LoRAs out again from the next request on, those of the recipe too: the base, bit for bit."""
        with self._turn():
            self._loras = [Override("model.lora", [], "unset_lora()")]

    def close(self) -> None:
        """Ends the worker and removes what is temporary, once a running `generate` of another thread is done."""
        with self._turn():
            self._end()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next_folder(self) -> Path:
        """For what is temporary of the next request. Raises DifftoolError in a session that is closed."""
        if not self._end.alive:
            raise DifftoolError("the session is closed", hint="difftool.load opens another one")
        self._count += 1
        return self._folder / str(self._count)

    def _made(
        self,
        changes: list[Override],
        folder: Path,
        on_event: Callable[[Event], None],
        recorded: ProfilePlan | None = None,
    ) -> tuple[Result, Path]:
        """The result of one request, and the folder of its records."""
        plan, raw = _plan(lay_over(self._loaded, [*self._loras, *changes]), folder, recorded), folder / "raw"
        records = launch.open_records(plan, raw_dir=str(raw))
        result = _result(plan, self._supervised(plan, records, on_event), str(raw))
        shutil.rmtree(raw, ignore_errors=True)
        return result, records

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._turn_of == threading.get_ident():
            raise DifftoolError("a session was used by the on_event of its own generate")
        with self._turn_lock:
            self._turn_of = threading.get_ident()
            try:
                yield
            finally:
                self._turn_of = None

    def _supervised(self, plan: Plan, records: Path, on_event: Callable[[Event], None]) -> launch.RunResult:
        watch = SignalWatch()
        try:
            run = partial(launch.supervise, hire=self._worker.hire, watch=watch, on_event=on_event)
            return launch.run_to_the_end(plan, records, run, told=partial(warnings.warn, stacklevel=4))
        finally:
            if watch.received:  # the caller's own handlers are back: by default, KeyboardInterrupt or the end
                if watch.received[0] != signal.SIGINT:
                    self._end()
                signal.raise_signal(watch.received[0])


def _source(recipe: str | os.PathLike[str] | Mapping[str, object] | Recipe) -> str | Mapping[str, object]:
    if isinstance(recipe, Recipe):
        written: dict[str, object] = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return written
    return {key: _plain(value) for key, value in recipe.items()} if isinstance(recipe, Mapping) else os.fspath(recipe)


def _changes(called: str, sampling: Mapping[str, object]) -> list[Override]:
    return [Override(f"sampling.{key}", _plain(value), f"{called}({key}=…)") for key, value in sampling.items()]


def _what_to_record(steps: int | None, *, all_stages: bool) -> ProfilePlan:
    """Raises RecipeError for arguments that would do nothing."""
    if steps is None:
        return ProfilePlan(all_stages=all_stages)
    if all_stages:
        raise RecipeError("profile(all_stages=True) records every step; leave steps out")
    if steps < 1:
        raise RecipeError(f"profile(steps={steps}) records nothing; use 1 or more")
    return ProfilePlan(steps=steps)


def _lora_entries(
    path: LoraPath | Sequence[LoraPath],
    nickname: str | Sequence[str | None] | None,
    strength: float | Sequence[float],
    target: str | Sequence[str],
    known: Mapping[str, str],
) -> list[dict[str, object]]:
    """One entry of `model.lora` for each LoRA. Raises RecipeError for lists of different lengths, and unknown names."""
    lists = {"path": _many(path), "nickname": _many(nickname), "strength": _many(strength), "target": _many(target)}
    count = max(len(lists["path"]), len(lists["nickname"]))
    # what is given once goes for every LoRA; each has a path, or a nickname, of its own
    for name, values in lists.items():
        if len(values) != count and not (len(values) == 1 and (name in ("strength", "target") or values == [None])):
            raise RecipeError(f"set_lora({name}=…): {len(values)} values for {count} LoRAs; give one for each")
    rows = [{name: values[i % len(values)] for name, values in lists.items()} for i in range(count)]
    for row in rows:
        if row["path"] is None:
            if row["nickname"] not in known:
                names = ", ".join(known) or "none"
                raise RecipeError(f"set_lora: no LoRA was set as {row['nickname']!r} before; give its path ({names})")
            row["path"] = known[str(row["nickname"])]
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _many(value: object) -> list[object]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _plain(value: object) -> object:
    """Paths as texts."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _check(loaded: Loaded) -> None:
    """Refuses now what no request can mend."""
    if loaded.recipe.quality.reference is not None and loaded.recipe.quality.reference.without is not None:
        key = "quality.reference.without"
        message = f"{key}: a session makes no references; give quality.reference.dir, a folder that holds them"
        raise RecipeError([Problem(key, message, loaded.where(key))])
    try:
        make_plan(_without_stdin(loaded), run=RunOptions())
    except RecipeError as error:
        lasting = [problem for problem in error.problems if not problem.key.startswith(OF_A_REQUEST)]
        if lasting:
            raise RecipeError(lasting, hint=error.hint) from None


def _plan(loaded: Loaded, folder: Path, recorded: ProfilePlan | None) -> Plan:
    """Files are written as the recipe's `output` section says; without one, `folder` holds the records, and traces."""
    writes = any(key.partition(".")[0] == "output" for key in loaded.provenance)
    options = RunOptions(output_dir=None if writes else str(folder), save_output=writes, profile=recorded)
    return make_plan(_without_stdin(loaded), run=options)


def _without_stdin(loaded: Loaded) -> Loaded:
    """Raises RecipeError for prompts that could be read only once."""
    prompts = loaded.recipe.sampling.prompts
    if isinstance(prompts, PromptsFile) and prompts.file == "-":
        key = "sampling.prompts.file"
        raise RecipeError([Problem(key, f"{key}: a session does not read standard input", loaded.where(key))])
    return loaded


def _result(plan: Plan, run: launch.RunResult, raw: str) -> Result:
    from difftool.media.values import read_raw

    assert run.perf is not None, run
    made = [read_raw(raw_file(raw, position)) for position in range(len(plan.items))]
    return Result(
        images=[one for one in made if not isinstance(one, list)],
        frames=[one for one in made if isinstance(one, list)],
        paths=[media.path for media in sorted(run.media, key=lambda media: media.item)],
        seeds=[item.seed for item in plan.items],
        perf=read_perf(run.perf),
    )


def _end(worker: LivingWorker, folder: Path, owner: int) -> None:
    """Ends a session. Not in a process that was forked from its owner."""
    if os.getpid() == owner:
        try:
            worker.stop()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _ignore(event: Event) -> None:
    """For who asks for no events."""

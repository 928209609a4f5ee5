"""A run under torch's profiler: which steps are recorded, and the trace and tables that are left.

A trace opens in Perfetto.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerAction, ProfilerActivity, profile, record_function, schedule

from difftool.files import make_folder
from difftool.parallel.mesh import Mesh
from difftool.planning.plan import ProfilePlan
from difftool.platforms.base import Platform
from difftool.profiling.ranges import BLOCK, COLLECTIVE, STAGE, STEP, named_parts
from difftool.profiling.timers import Timer, Timings
from difftool.report.perf import KernelTime, Profile, TraceFile

RANGES = (STAGE, STEP, BLOCK, "ProfilerStep")  # which hold operations and are none
COMMUNICATION = "communication"
STEPPED = "denoising"  # the stage that has steps
SHOWN_KERNELS = 12
# what an operation is for, by the first of these that its name holds; `other` else
KINDS: Mapping[str, tuple[str, ...]] = {
    "attention": ("attention", "flash", "fmha", "sdpa"),
    COMMUNICATION: ("nccl", "gloo", "c10d", "all_gather", "all_reduce", "all_to_all", "allgather", "allreduce"),
    "convolution": ("conv", "slow_conv", "wgrad", "dgrad"),
    "matmul": ("mm", "gemm", "linear", "matmul", "cutlass", "xmma"),
    "normalisation": ("norm",),
    "copies": ("copy", "memcpy", "memset", "::cat", "contiguous", "clone", "::to"),
    "elementwise": ("add", "mul", "div", "sub", "gelu", "silu", "sigmoid", "exp", "elementwise", "softmax", "pow"),
}


class TracingTimer(Timer):
    """A timer that records too; its readings hold the profiler's own time. For one sample.

    Either every stage is recorded or, after one step that is not, the next steps of denoising.
    """

    def __init__(
        self,
        platform: Platform,
        plan: ProfilePlan,
        *,
        rank: int,
        file: Callable[[str], Path],
        modules: Mapping[str, Any],
        mesh: Mesh,
    ):
        """`file` is where the trace goes, by what it holds, such as `5_steps-global-rank0.trace.json.gz`."""
        super().__init__(platform)
        self._plan, self._rank, self._file = plan, rank, file
        self._named_parts = partial(named_parts, modules, mesh, record_function)
        self._ranges = ExitStack()
        self._profiler: profile | None = None
        self._marks = 0
        self._stages: list[str] = []
        self._recorded: list[int] = []

    @contextmanager
    def sample(self) -> Iterator[Timings]:
        with super().sample() as timings:
            if self._plan.all_stages:
                self._start(None)
                self._ranges.enter_context(self._named_parts())
            try:
                yield timings
            finally:
                self._stop()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with super().stage(name):
            if self._plan.all_stages:
                self._stages.append(name)
            with record_function(STAGE + name):
                yield
            if not self._plan.all_stages:
                self._stop()

    def step(self) -> None:
        """Marks a boundary; the first one is the start of step 0."""
        super().step()
        if self._plan.all_stages:
            self._recorded += [self._marks - 1] if self._marks else []
        elif self._marks == 0:
            self._start(schedule(wait=0, warmup=1, active=self._plan.steps, repeat=1))
        elif self._marks <= self._plan.steps + 1:
            self._next_step()
        self._marks += 1

    def range(self, name: str) -> AbstractContextManager[object]:
        return record_function(name)

    def _next_step(self) -> None:
        """Step `_marks` - 1 is over."""
        assert self._profiler is not None
        if self._marks == 1:  # that was the one to warm up
            self._stages.append(STEPPED)
            self._profiler.step()
            self._ranges.enter_context(record_function(STAGE + STEPPED))
            self._ranges.enter_context(self._named_parts())
            return
        self._recorded.append(self._marks - 1)
        if self._marks == self._plan.steps + 1:
            self._ranges.close()
        self._profiler.step()

    def _start(self, steps: Callable[[int], ProfilerAction] | None) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.platform.name == "cuda" else [])]
        self._profiler = profile(activities=activities, schedule=steps, record_shapes=True, on_trace_ready=self._keep)
        self._profiler.start()

    def _stop(self) -> None:
        if self._profiler is not None:
            self._ranges.close()
            self._profiler.stop()
            self._profiler = None

    def _keep(self, done: profile) -> None:
        """Writes the trace, and sums up what it holds."""
        if not (self._recorded or self._plan.all_stages):  # it failed before
            return
        what = "full_stages" if self._plan.all_stages else f"{len(self._recorded)}_steps"
        file = self._file(f"{what}-global-rank{self._rank}.trace.json.gz")
        make_folder(file.parent)
        done.export_chrome_trace(str(file))
        operations = list(_operations(done, self.platform.name))
        busy = sum(ms for _, _, ms in operations)
        total = max(busy, _wall_ms(done)) or 1.0
        spent, kinds = dict[str, list[float]](), {"between operations": total - busy}
        for name, kind, ms in operations:
            spent.setdefault(name, []).append(ms)
            kinds[kind] = kinds.get(kind, 0.0) + ms
        longest = sorted(spent.items(), key=lambda entry: sum(entry[1]), reverse=True)[:SHOWN_KERNELS]
        self.profile = Profile(
            tool="torch",
            stages=self._stages,
            steps=self._recorded,
            traces=[TraceFile(rank=self._rank, path=str(file))],
            kernels=[
                KernelTime(name=name, calls=len(ms), ms=sum(ms), share_pct=100 * sum(ms) / total)
                for name, ms in longest
            ],
            kinds_ms=dict(sorted(kinds.items(), key=lambda entry: -entry[1])),
        )


def _operations(done: profile, device: str) -> Iterator[tuple[str, str, float]]:
    """(name, kind, ms of its own) of every operation that the host ran itself or, on CUDA, of every kernel.

    What the host runs for a collective, its wait among it, is communication.
    """
    events = done.events()
    if device == "cuda":
        kernels = (event for event in events if event.device_type != DeviceType.CPU)
        for event in kernels:
            if not event.name.startswith((*RANGES, COLLECTIVE)):
                yield event.name, _kind(event.name), event.self_device_time_total / 1e3
        return
    threads = {event.thread for event in events if event.name.startswith(STAGE)}
    for event in events:
        if event.thread in threads and not event.is_async and not event.name.startswith(RANGES):
            kind = COMMUNICATION if _is_in_collective(event) else _kind(event.name)
            yield event.name, kind, event.self_cpu_time_total / 1e3


def _is_in_collective(event: FunctionEvent) -> bool:
    place: FunctionEvent | None = event
    while place is not None and not place.name.startswith(COLLECTIVE):
        place = place.cpu_parent
    return place is not None


def _wall_ms(done: profile) -> float:
    """How long the recorded stages took."""
    stages = (event for event in done.events() if event.name.startswith(STAGE) and event.device_type == DeviceType.CPU)
    return sum(event.cpu_time_total for event in stages) / 1e3


def _kind(name: str) -> str:
    lower = name.lower()
    return next((kind for kind, words in KINDS.items() if any(word in lower for word in words)), "other")

"""The arms of one model, taking turns: A B C C B A A B C …, for as long as there is time."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench_gpu_arms import Arm, Bench, make_arm
from torch import Tensor

from difftool.acceleration.compilation import spent_ms
from difftool.errors import DifftoolError
from difftool.planning.todo import Task, Todo
from difftool.profiling.recording import Recording, build_dump
from difftool.profiling.telemetry import Watch
from difftool.profiling.timers import Timer
from difftool.report.peaks import peak_of_ranks
from difftool.report.perf import PerfDump

LIMIT = 0.05  # of the norm of the first arm's latents: bf16 kernels differ by some thousandths after a few steps
OUT_OF_TIME = "the time was up"


class Budget:
    """What is left of so many seconds, by a clock that never goes back."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.clock, self.end = clock, clock() + seconds

    def left(self) -> float:
        return self.end - self.clock()

    def share(self, parts: int) -> "Budget":
        """One of so many equal parts of what is left."""
        return Budget(self.left() / parts, self.clock)


@dataclass
class Runner:
    """An arm at work. `cold_ms` is what its first run took, `seconds` the longest of the others."""

    arm: Arm
    recording: Recording
    cold_ms: float = 0.0
    seconds: float = 0.0
    difference: float = 0.0  # of its latents from those of the first arm, as part of their norm


@dataclass(frozen=True)
class Raced:
    """What a race of one model left. `order` are the arms as they ran; `left_out` those that did not, with why."""

    runners: Sequence[Runner]
    order: Sequence[str]
    left_out: Mapping[str, str]
    flops: float | None  # of one step

    def dumps(self) -> dict[str, PerfDump]:
        """A perf dump of every arm that was measured."""
        rounds = len(self.order) // max(len(self.runners), 1)
        return {
            runner.arm.name: interleaved(build_dump(runner.recording), rounds)
            for runner in self.runners
            if runner.recording.samples
        }


def interleaved(dump: PerfDump, rounds: int) -> PerfDump:
    """The same, told as one of a race."""
    measure = dump.measure.model_copy(update={"order": "ABBA", "repeats": rounds})
    return dump.model_copy(update={"measure": measure})


@dataclass
class Race:
    """The arms of one model. `tell` hears of every arm that is ready or left out."""

    bench: Bench
    budget: Budget
    watch: Watch
    flops: float | None
    tell: Callable[[str], None]
    left_out: dict[str, str] = field(default_factory=dict)

    def run(self, names: Sequence[str], repeats: int) -> Raced:
        """Makes all of them ready before the first turns: what one has compiled is forgotten when another is made."""
        runners = self._warm(self._made(names))
        order: list[str] = []
        for number in range(repeats):
            if not runners or self.budget.left() < sum(runner.seconds for runner in runners):
                break
            for runner in runners if number % 2 == 0 else reversed(runners):
                self._turn(runner, number)
                order.append(runner.arm.name)
        return Raced(runners, order, self.left_out, self.flops)

    def _made(self, names: Sequence[str]) -> list[Arm]:
        found: list[Arm] = []
        for name in names:
            try:
                arm = make_arm(self.bench, name)
            except DifftoolError as error:
                self._leave_out(name, str(error))
                continue
            same = next((other.name for other in found if is_same(other, arm)), None)
            if same is None:
                found.append(arm)
            else:
                self._leave_out(name, f"it is {same}, which has the same attention here")
        return found

    def _warm(self, arms: Sequence[Arm]) -> list[Runner]:
        """A cold run of each, timed apart, then a warm one. The first arm's latents are what the others' must be."""
        runners: list[Runner] = []
        expected: Tensor | None = None
        for arm in arms:
            if self.budget.left() <= 0:
                self._leave_out(arm.name, OUT_OF_TIME)
                continue
            try:
                runner, latents = self._cold(arm)
            except (DifftoolError, RuntimeError) as error:  # as torch reports what it cannot compile, compute or hold
                self._leave_out(arm.name, f"its first run fails: {str(error).strip().partition(chr(10))[0]}")
                self.bench.platform.free_memory()
                continue
            expected = latents if expected is None else expected
            runner.difference = distance(latents, expected)
            self._turn(runner, None)
            runners.append(runner)
            self.tell(f"{arm.name}: first run {runner.cold_ms / 1e3:.1f} s, then {runner.seconds:.1f} s")
        return runners

    def _cold(self, arm: Arm) -> tuple[Runner, Tensor]:
        platform = self.bench.platform
        task = Task(name=f"{arm.name}.latents", make=True, replace=False)
        recording = Recording(
            plan=arm.plan,
            todo=Todo(tasks=(task,), resumed_from=None),
            run_id=arm.name,
            started=time.perf_counter(),
            platform=platform,
            effective=arm.effective,
            peak_flops=peak_of_ranks(str(platform.describe()["name"]), {self.bench.precision}, ranks=1),
        )
        compiled = spent_ms()
        latents = arm.run(Timer(platform))
        recording.compile_ms = spent_ms() - compiled
        recording.cold_start_ms = (time.perf_counter() - recording.started) * 1e3
        return Runner(arm, recording, cold_ms=recording.cold_start_ms), latents

    def _turn(self, runner: Runner, number: int | None) -> None:
        """One run of an arm; without a number it is a warm-up."""
        timer, start = Timer(self.bench.platform), time.perf_counter()
        self.watch.start()
        runner.arm.run(timer)
        telemetry = self.watch.read()
        runner.seconds = max(runner.seconds, time.perf_counter() - start)
        if number is None:
            runner.recording.warmup_ms.append(timer.timings.total)
            return
        steps = len(timer.timings.steps)
        flops = None if self.flops is None else self.flops * steps
        runner.recording.add(0, number, timer.timings, (), save_ms=0.0, telemetry=telemetry, flops=flops)

    def _leave_out(self, name: str, why: str) -> None:
        self.left_out[name] = why
        self.tell(f"{name}: left out: {why}")


def is_same(one: Arm, other: Arm) -> bool:
    """Whether two arms of difftool came to the same kernels."""
    same = one.setting.own and other.setting.own and one.setting.compile == other.setting.compile
    return same and one.effective["attention"] == other.effective["attention"]


def distance(made: Tensor, expected: Tensor) -> float:
    """As part of the expected numbers' norm; infinite where any is no number."""
    if not bool(made.isfinite().all()):
        return float("inf")
    return float((made.float() - expected.float()).norm() / expected.float().norm())

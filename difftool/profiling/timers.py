"""Time by stage and by denoising step, on the device's own timeline, with one synchronisation per stage."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from difftool.platforms.base import Platform
from difftool.report.perf import Profile


@dataclass
class Timings:
    """One sample's raw readings. Milliseconds and MiB; `steps` are the denoising steps in order."""

    stages: dict[str, float] = field(default_factory=dict)
    steps: list[float] = field(default_factory=list)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    total: float = 0.0


class Timer:
    """Reads one sample. Use `sample` around the whole forward, `stage` around each stage, `step` after each step."""

    def __init__(self, platform: Platform):
        self.platform = platform
        self.timings = Timings()
        self.profile: Profile | None = None  # of the sample, where something recorded it
        self._steps: list[Any] = []

    @contextmanager
    def sample(self) -> Iterator[Timings]:
        """Times everything inside; stage times within it should sum to its `total`."""
        self.timings, self._steps = Timings(), []
        self.platform.reset_peak_memory()
        self.platform.synchronize()
        start = self.platform.mark()
        yield self.timings
        end = self.platform.mark()
        self.platform.synchronize()
        self.timings.total = self.platform.elapsed_ms(start, end)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times one stage; synchronises once, at its end, so its time holds its own work and no other's."""
        start = self.platform.mark()
        yield
        end = self.platform.mark()
        self.platform.synchronize()
        self.timings.stages[name] = self.platform.elapsed_ms(start, end)
        self.timings.memory[f"after_{name}"] = self.platform.memory()
        if self._steps:
            pairs = zip(self._steps, self._steps[1:], strict=False)
            self.timings.steps = [self.platform.elapsed_ms(a, b) for a, b in pairs]
            self._steps = []

    def range(self, name: str) -> AbstractContextManager[object]:
        """A name for what runs inside, for whoever records it."""
        return nullcontext()

    def step(self) -> None:
        """Marks a step boundary without synchronising: call once before the loop and once after each step."""
        self._steps.append(self.platform.mark())

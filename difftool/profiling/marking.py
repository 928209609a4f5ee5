"""A run under Nsight Systems: NVTX ranges name its parts, and `nsys` records them with all else."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import nvtx

from difftool.parallel.mesh import Mesh
from difftool.platforms.base import Platform
from difftool.profiling.ranges import STAGE, named_parts
from difftool.profiling.timers import Timer, Timings
from difftool.report.perf import Profile


class MarkingTimer(Timer):
    """A timer that marks every part of a sample; its readings hold the time that `nsys` takes."""

    def __init__(self, platform: Platform, *, report: Path, modules: Mapping[str, Any], mesh: Mesh):
        """`report` is where `nsys` was told to leave what it records."""
        super().__init__(platform)
        self._report, self._modules, self._mesh = report, modules, mesh

    @contextmanager
    def sample(self) -> Iterator[Timings]:
        with super().sample() as timings, named_parts(self._modules, self._mesh, nvtx.annotate):
            yield timings
        steps = list(range(len(timings.steps)))
        self.profile = Profile(tool="nsys", stages=list(timings.stages), steps=steps, report=str(self._report))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with super().stage(name), nvtx.annotate(STAGE + name):
            yield

    def range(self, name: str) -> AbstractContextManager[object]:
        return nvtx.annotate(name)

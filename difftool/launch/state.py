"""What the events of a run have said so far: where it is, what it made, how it ended."""

from dataclasses import dataclass, field
from pathlib import Path

from difftool.launch.events import (
    Error,
    Event,
    Finished,
    ItemFailed,
    ItemStarted,
    Loaded,
    LoadStarted,
    Output,
    Perf,
    SaveStarted,
    StageStarted,
    Step,
)


@dataclass(frozen=True)
class Media:
    """One finished file, by the index of its item in the plan."""

    item: int
    path: Path
    sha256: str


@dataclass
class RunState:
    """Folds events; `apply` is the only writer. `rank` is set where it holds those of one rank out of many."""

    rank: int | None = None
    loading: bool = False
    item: ItemStarted | None = None
    stage: str | None = None
    step: Step | None = None
    media: list[Media] = field(default_factory=list)
    failed: list[ItemFailed] = field(default_factory=list)
    perf: Path | None = None
    error: Error | None = None
    finished: bool = False

    @property
    def over(self) -> bool:
        return self.finished or self.error is not None

    def apply(self, event: Event) -> None:
        if isinstance(event, LoadStarted | Loaded):
            self.loading = isinstance(event, LoadStarted)
        elif isinstance(event, ItemStarted):
            self.item, self.stage, self.step = event, None, None
        elif isinstance(event, StageStarted | SaveStarted):
            self.stage, self.step = event.stage, None
        elif isinstance(event, Step):
            self.step = event
        elif isinstance(event, Output):
            self.media.append(Media(event.item, Path(event.path), event.sha256))
        elif isinstance(event, ItemFailed):
            self.failed.append(event)
        elif isinstance(event, Perf):
            self.perf = Path(event.path)
        elif isinstance(event, Error):
            self.error = event
        elif isinstance(event, Finished):
            self.finished = True

    @property
    def worker(self) -> str:
        """The process, for a sentence."""
        return "the worker" if self.rank is None else f"rank {self.rank}"

    def place(self) -> str:
        """Where the run is, for a sentence: ` in denoising of item red, after step 3 of 20`."""
        if self.item is None:
            return " while loading the model" if self.loading else " before the first item"
        words = f" in {self.stage} of item {self.item.id}" if self.stage else f" in item {self.item.id}"
        return words if self.step is None else f"{words}, after step {self.step.step + 1} of {self.step.steps}"

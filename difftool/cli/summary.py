"""The table after a run: how long each stage took, the middle of all samples."""

from statistics import median

from difftool.launch.events import Event, ItemFinished, ItemStarted, StageFinished


class StageTable:
    """Collects the times of samples; warm-up is left out."""

    def __init__(self) -> None:
        self._warmup: set[int | None] = set()  # the ranks that warm up
        self._stages: dict[str, list[float]] = {}
        self._totals: list[float] = []

    def take(self, event: Event) -> None:
        if isinstance(event, ItemStarted):
            if event.phase == "warmup":
                self._warmup.add(event.rank)
            else:
                self._warmup.discard(event.rank)
        elif event.rank in self._warmup:
            return
        elif isinstance(event, StageFinished):
            self._stages.setdefault(event.stage, []).append(event.ms)
        elif isinstance(event, ItemFinished):
            self._totals.append(event.total_ms)

    def text(self) -> str:
        """Aligned lines; empty where nothing was measured."""
        if not self._totals:
            return ""
        count = len(self._totals)
        title = "ms" if count == 1 else f"ms, median of {count}"
        rows = [(stage, median(times)) for stage, times in self._stages.items()] + [("total", median(self._totals))]
        names = max(len(name) for name, _ in rows)
        numbers = max(len(title), 10)
        lines = [f"{name:<{names}}  {ms:>{numbers}.1f}" for name, ms in rows]
        return "\n".join([f"{'stage':<{names}}  {title:>{numbers}}", *lines])

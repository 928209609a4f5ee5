"""An ordered list of stages, checked when it is put together, run over one batch."""

from collections.abc import Collection, Sequence

from difftool.errors import CompositionError
from difftool.pipeline.batch import REQUEST_FIELDS, STATE_FIELDS, Batch
from difftool.pipeline.stage import Context, PipelineStage


class ComposedPipeline:
    """Runs `stages` in order. Raises CompositionError at construction, before any weight is loaded.

    `available` are the component names the checkpoint has; `result` the field the last stage must leave set.
    """

    def __init__(self, stages: Sequence[PipelineStage], *, available: Collection[str], result: str = "pixels"):
        self.stages = tuple(stages)
        _check_order(self.stages, result)
        for stage in self.stages:
            if missing := sorted(set(stage.components) - set(available)):
                raise CompositionError(
                    f"stage {stage.name} needs {', '.join(missing)}, which the checkpoint does not have",
                    hint=f"it has {', '.join(sorted(available))}",
                )

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """One timed sample: every stage in order."""
        with ctx.timer.sample():
            for stage in self.stages:
                batch = stage(batch, ctx) if stage.applies(batch, ctx) else batch
        return batch


def _check_order(stages: Sequence[PipelineStage], result: str) -> None:
    written: dict[str, str] = {}
    for stage in stages:
        for name in sorted(stage.reads - REQUEST_FIELDS - written.keys()):
            later = next((s.name for s in stages if name in s.writes), None)
            way_out = f"move {later} before {stage.name}" if later else f"add a stage that writes {name}"
            raise CompositionError(f"stage {stage.name} reads {name}, which no earlier stage writes", hint=way_out)
        for name in sorted(stage.writes):
            if name not in STATE_FIELDS:
                raise CompositionError(f"stage {stage.name} writes {name}, which is not a field a stage may write")
            if name in written:
                raise CompositionError(f"stages {written[name]} and {stage.name} both write {name}")
            written[name] = stage.name
    if result not in written:
        raise CompositionError(f"no stage writes {result}", hint="end the pipeline with a decoding stage")

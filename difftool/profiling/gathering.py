"""What the ranks measured, brought together on the first."""

from pydantic import BaseModel, ConfigDict

from difftool.parallel.group import gather
from difftool.parallel.world import World
from difftool.profiling.recording import Recording, rank_info
from difftool.report.perf import Failure, OutputQuality, Profile, RankInfo, Sample
from difftool.report.reuse import CacheUse


class Measured(BaseModel):
    """One rank's part of a dump."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: RankInfo
    samples: list[Sample]
    failed_items: list[Failure]
    outputs: list[OutputQuality]
    profile: Profile | None
    caches: list[CacheUse]


def gather_measurements(recording: Recording, world: World, *, leads: bool) -> None:
    """Adds the other ranks' samples to the first one's recording, in the order of one rank; all of them call it.

    A rank that does not lead its replica has the figures of its own, and no samples: the item is the leader's.
    """
    samples, failed = (recording.samples, recording.failed_items) if leads else ([], [])
    mine = Measured(
        rank=rank_info(recording),
        samples=samples,
        failed_items=failed,
        outputs=recording.outputs,
        profile=recording.profile,
        caches=recording.caches if leads else [],
    )
    parts = gather(world, mine.model_dump_json().encode())
    if not world.first:
        return
    measured = [Measured.model_validate_json(part) for part in parts]
    recording.ranks = [part.rank for part in measured]
    recording.samples = [sample for part in measured for sample in part.samples]
    recording.failed_items = [failure for part in measured for failure in part.failed_items]
    recording.outputs = [output for part in measured for output in part.outputs]
    recording.outputs.sort(key=lambda output: output.item)
    profiles = [part.profile for part in measured if part.profile is not None]
    if profiles:
        files = {
            "traces": [trace for profile in profiles for trace in profile.traces],
            "snapshots": [snapshot for profile in profiles for snapshot in profile.snapshots],
        }
        recording.profile = profiles[0].model_copy(update=files)
    recording.caches = [use for part in measured for use in part.caches]
    recording.caches.sort(key=lambda use: (use.repeat, use.item))
    recording.samples.sort(key=lambda sample: (sample.repeat, sample.item))

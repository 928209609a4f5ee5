"""What the ranks of one machine measured, brought together on the first: a JSON file for each of the others."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from difftool.files import write_atomic
from difftool.parallel.world import World
from difftool.profiling.recording import Recording, rank_info
from difftool.report.perf import Failure, RankInfo, Sample


class Measured(BaseModel):
    """One rank's part of a dump."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: RankInfo
    samples: list[Sample]
    failed_items: list[Failure]


def leave_measurements(recording: Recording, world: World) -> None:
    """Writes this rank's samples for the first one; call it before the barrier."""
    if not world.first:
        part = Measured(rank=rank_info(recording), samples=recording.samples, failed_items=recording.failed_items)
        write_atomic(_part(world, world.rank), part.model_dump_json().encode())


def gather_measurements(recording: Recording, world: World) -> None:
    """Adds the other ranks' samples to the first one's recording, in the order of one rank; call it after the barrier.

    Without the barrier the files may not be there. On the other ranks this does nothing.
    """
    if not world.first:
        return
    recording.ranks = [rank_info(recording)]
    for rank in range(1, world.size):
        part = Measured.model_validate_json(_part(world, rank).read_bytes())
        recording.ranks.append(part.rank)
        recording.samples += part.samples
        recording.failed_items += part.failed_items
    recording.samples.sort(key=lambda sample: (sample.repeat, sample.item))


def _part(world: World, rank: int) -> Path:
    assert world.folder is not None
    return world.folder / f"measured-{rank}.json"

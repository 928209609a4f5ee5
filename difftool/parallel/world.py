"""Which rank this process is, read from the variables that every launcher of torch sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among the ranks of a run. `folder` is where they meet; only a world of one has none."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    folder: Path | None = None

    @property
    def first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This replica's items: every size-th one, so that counts differ by one at most."""
        return items[self.rank :: self.size]


def read_world(environ: Mapping[str, str], folder: Path | None) -> World:
    """The world that `RANK`, `WORLD_SIZE` and `LOCAL_RANK` describe; a world of one where there is no folder."""
    if folder is None:
        return World()
    rank, size, local = (int(environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return World(rank, size, local, folder)


def answers_pipe(world: World) -> Path:
    """The named pipe that the launcher reads this rank's lines from."""
    assert world.folder is not None
    return world.folder / f"answers-{world.rank}"


def tasks_pipe(world: World) -> Path:
    """The named pipe that a rank of a pool reads its tasks from."""
    assert world.folder is not None
    return world.folder / f"tasks-{world.rank}"

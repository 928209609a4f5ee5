"""Which rank this process is, read from the variables that every launcher of torch sets, and from its launcher's own
words where several machines make one world.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class World:
    """This process among the ranks of a run. `folder` is where those of one machine meet; only a world of one has none.
    `address` is set where there are several machines: the first rank listens there for the others.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    folder: Path | None = None
    address: str | None = None

    @property
    def first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0


@dataclass(frozen=True)
class Beyond:
    """What goes beyond this machine: `FIRST:SIZE:ADDRESS`, the rank that its first process has, and the world."""

    first: int
    size: int
    address: str


def read_beyond(text: str) -> Beyond:
    """Raises ValueError."""
    first, size, address = text.split(":", 2)
    return Beyond(int(first), int(size), address)


def read_world(environ: Mapping[str, str], folder: Path | None, beyond: Beyond | None = None) -> World:
    """The world that `RANK`, `WORLD_SIZE` and `LOCAL_RANK` describe; a world of one where there is no folder.

    With `beyond`, these are the ranks of one machine out of several.
    """
    if folder is None:
        return World()
    rank, size, local = (int(environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if beyond is None:
        return World(rank, size, local, folder)
    return World(beyond.first + rank, beyond.size, local, folder, beyond.address)


def answers_pipe(world: World) -> Path:
    """The named pipe that the launcher reads this rank's lines from."""
    assert world.folder is not None
    return world.folder / f"answers-{world.local_rank}"


def tasks_pipe(world: World) -> Path:
    """The named pipe that a rank of a pool reads its tasks from."""
    assert world.folder is not None
    return world.folder / f"tasks-{world.local_rank}"

"""Settings that exclude each other, in one table. Values a single key may not have belong to the schema."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from difftool.errors import Problem
from difftool.planning.plan import Degrees
from difftool.planning.tree import at


@dataclass(frozen=True)
class Situation:
    """What a conflict is judged by: the recipe, the solved degrees and the items' sampling values."""

    recipe: Mapping[str, Any]
    degrees: Degrees

    def get(self, key: str) -> Any:
        """A recipe value by its dotted key."""
        return at(self.recipe, key)


@dataclass(frozen=True)
class Conflict:
    """`holds` is true where the settings exclude each other; `key` is where the problem is shown."""

    key: str
    holds: Callable[[Situation], bool]
    message: str


CONFLICTS = (
    Conflict(
        "parallel.hsdp",
        lambda s: s.degrees.hsdp != "none" and s.degrees.tp > 1,
        "parallel.hsdp shards over the ranks that tensor parallel splits; use tp=1 or hsdp=none",
    ),
    Conflict(
        "parallel.hsdp",
        lambda s: isinstance(s.degrees.hsdp, int) and s.degrees.num_gpus % s.degrees.hsdp != 0,
        "parallel.hsdp does not divide num_gpus",
    ),
    Conflict(
        "stages.text_encoding.tp",
        lambda s: s.get("stages.text_encoding.tp") not in (1, s.degrees.num_gpus),
        "stages.text_encoding.tp splits the encoders over all ranks; use 1 or num_gpus",
    ),
    Conflict(
        "model.trust_remote_code",
        lambda s: s.get("model.trust_remote_code") and s.get("model.revision") is None,
        "model.trust_remote_code needs a pinned model.revision",
    ),
)


def check_conflicts(situation: Situation) -> list[Problem]:
    """Every conflict that holds."""
    return [Problem(c.key, c.message) for c in CONFLICTS if c.holds(situation)]

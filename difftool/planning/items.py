"""The items of a run: prompts times outputs, each with its seed and complete sampling values."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from difftool.errors import Problem
from difftool.planning.checkpoint import Checkpoint
from difftool.planning.plan import Item
from difftool.planning.sampling import Resolved, check_sampling, resolve_sampling

NOT_VALUES = ("prompt", "prompts", "seed", "num_outputs_per_prompt", "id")


@dataclass(frozen=True)
class Items:
    """The items, the run-wide values they share, and every problem found on the way."""

    items: tuple[Item, ...]
    shared: Resolved
    problems: tuple[Problem, ...]


def make_items(sampling: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], checkpoint: Checkpoint) -> Items:
    """`sampling` is the recipe's section; `entries` are mappings that each hold a prompt and what differs for it.

    An item's seed is the recipe's plus the number of outputs before it (item i, output j of equally many outputs:
    seed + i * num_outputs_per_prompt + j); an entry with a seed of its own counts from that.
    """
    given = _given(sampling)
    shared = resolve_sampling(given, checkpoint)
    problems = list(check_sampling(given, shared.values, checkpoint))
    items: list[Item] = []
    before = 0
    for index, entry in enumerate(entries):
        own = {**given, **_given(entry)}
        values = resolve_sampling(own, checkpoint).values
        if own != given:
            found = check_sampling(own, values, checkpoint)
            problems += [Problem(p.key, f"prompt {entry.get('id', index)}: {p.message}") for p in found]
        outputs = entry.get("num_outputs_per_prompt", sampling["num_outputs_per_prompt"])
        first = entry["seed"] if "seed" in entry else sampling["seed"] + before
        before += outputs
        items += [
            Item(
                index=index,
                output=output,
                id=str(entry.get("id", index)),
                prompt=entry["prompt"],
                seed=first + output,
                sampling=values,
            )
            for output in range(outputs)
        ]
    return Items(tuple(items), shared, tuple(dict.fromkeys(problems)))


def draw(seed: int | str, recorded: int | None = None) -> int:
    """The seed itself; for `random` the one that was drawn before, or a fresh one."""
    if seed != "random":
        return int(seed)
    return secrets.randbelow(2**31) if recorded is None else recorded


def draw_seeds(
    entries: Sequence[Mapping[str, Any]], recorded: Sequence[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]]:
    """The entries with every `random` seed drawn, or taken from the `recorded` entry at the same place."""
    before = [entry.get("seed") for entry in recorded] + [None] * len(entries)
    return [
        {**entry, "seed": draw(entry["seed"], seed)} if "seed" in entry else entry
        for entry, seed in zip(entries, before, strict=False)
    ]


def _given(section: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling keys that are set; a scheduler or extra left at its default is not."""
    empty: tuple[object, ...] = (None, {}, "auto")
    kept = {key: value for key, value in section.items() if key not in NOT_VALUES and value not in empty}
    scheduler = kept.pop("scheduler", {})
    scheduler = {"name": scheduler} if isinstance(scheduler, str) else scheduler
    changed = {key: value for key, value in scheduler.items() if value not in empty}
    return {**kept, "scheduler": changed} if changed else kept

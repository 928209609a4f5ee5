"""What goes with what: every feature of a run beside every other one, as docs/compatibility.md tells it.

    python scripts/compatibility.py            # prints the tables
    python scripts/compatibility.py --write    # puts them into the page, and their sums into docs/acceleration.md

A feature is one entry of FEATURES. Pairs are not written down: what two features do together follows from what each
does by itself, and what is refused is what the plan of both says. tests/families/test_pairs.py runs every pair.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache as once
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from difftool.errors import RecipeError
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.tree import ancestors, leaves
from difftool.recipe.load import load_recipe

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- made by scripts/compatibility.py --write -->\n", "<!-- end of what it makes -->\n"
BASE: Mapping[str, Any] = {"model": {"path": "builtin:shapes-video"}, "sampling": {"prompt": "a red circle"}}
EXACT, ROUNDING, LOSSY = range(3)  # what a feature changes of what a run makes
WORDS, SIGNS, ONE_SETTING = ("nothing", "rounding", "lossy"), ("=", "≈", "~"), "·"


@dataclass(frozen=True, eq=False)
class Feature:
    """`lines` are the recipe's that switch it on, `changes` what it does by itself; `shown` is what `effective` of a
    perf dump has then, by dotted key. `redone`: it is not the same in parts, and changes along these axes by as much
    as it does by itself.
    """

    name: str
    changes: int
    lines: Mapping[str, Any]
    shown: Mapping[str, Any]
    redone: tuple[str, ...] = ()


def denoising(key: str, value: Any) -> Mapping[str, Any]:
    return {"stages": {"denoising": {key: value}}}


def cache(backend: str, **settings: Any) -> Feature:
    return Feature(backend, LOSSY, {"cache": {"backend": backend, **settings}}, {"cache.backend": backend})


def compiled(mode: str) -> Feature:
    return Feature(mode, ROUNDING, denoising("compile", mode), {"compile.transformer.mode": mode})


def offload(mode: str) -> Feature:
    return Feature(mode, EXACT, denoising("offload", mode), {"offload.transformer.mode": mode})


def axis(name: str, changes: int) -> Feature:
    return Feature(name, changes, {"parallel": {name: 2}}, {f"shard.{name}": 2})


SPARSE = {"name": "video_sparse_attn", "sparsity": 0.5}
KERNEL = "attention.transformer.self"
FEATURES = (
    Feature("flex", ROUNDING, denoising("attention", {"self": "flex"}), {KERNEL: "flex"}),
    Feature("sparse", LOSSY, denoising("attention", {"self": SPARSE}), {f"{KERNEL}.name": SPARSE["name"]}),
    cache("dbcache", max_warmup_steps=1),
    cache("teacache", teacache={"threshold": 0.2, "coefficients": [1.0, 0.0]}),
    Feature(
        "int8",
        LOSSY,
        denoising("quantization", "int8"),
        {"quantization.transformer.name": "int8"},
        redone=("tp",),
    ),
    compiled("regional"),
    compiled("full"),
    Feature("LoRA", EXACT, {"model": {"lora": ["builtin:outline"]}}, {"lora.status": "applied"}),
    offload("after_use"),
    offload("layerwise"),
    axis("cfg", ROUNDING),
    axis("ulysses", ROUNDING),
    axis("ring", ROUNDING),
    axis("tp", ROUNDING),
    Feature("hsdp", ROUNDING, {"parallel": {"num_gpus": 2, "hsdp": "all"}}, {"shard.hsdp": 2}),
    axis("dp", EXACT),
)


@dataclass(frozen=True)
class Outcome:
    """Of two features together: why they are refused, or what `first` changes of what `other` makes by itself."""

    refused: str
    changes: int


def both(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """One recipe with the lines of two."""
    shared = [key for key in first if isinstance(first[key], Mapping) and isinstance(other.get(key), Mapping)]
    return {**first, **other, **{key: both(first[key], other[key]) for key in shared}}


def is_one_setting(first: Feature, other: Feature) -> bool:
    """Whether two features are values of one key."""
    theirs = {name: value for key, value in leaves(other.lines) for name in ancestors(key)}
    return any(key in theirs and theirs[key] != value for key, value in leaves(first.lines))


def pairs() -> Iterator[tuple[Feature, Feature]]:
    """Every two that are not values of one key, the one that changes less before the other."""
    for pair in combinations(FEATURES, 2):
        if not is_one_setting(*pair):
            first, other = sorted(pair, key=lambda feature: feature.changes)
            yield first, other


def refusal(recipe: Mapping[str, Any]) -> str:
    """Why a recipe is refused; "" for one that is planned."""
    try:
        make_plan(load_recipe(recipe), run=RunOptions())
    except RecipeError as error:
        return "; ".join(problem.message for problem in error.problems)
    return ""


def outcome(first: Feature, other: Feature, base: Mapping[str, Any] = BASE) -> Outcome:
    changes = other.changes if first.name in other.redone else first.changes
    return Outcome(refusal(both(both(base, first.lines), other.lines)), changes)


@once
def outcomes() -> Mapping[frozenset[Feature], Outcome]:
    """That of every pair."""
    return {frozenset(pair): outcome(*pair) for pair in pairs()}


def summary() -> str:
    """How many pairs there are of each kind, in one sentence with a link to the tables."""
    found = Counter(None if each.refused else each.changes for each in outcomes().values())
    return (
        f"[What goes with what](compatibility.md) has {len(FEATURES)} features, every two of them side by side. "
        f"Of {found.total()} pairs\n{found[None]} are refused, each with its reason. Of the others, one changes "
        f"nothing of what the other makes in {found[EXACT]},\nchanges its rounding in {found[ROUNDING]}, "
        f"and is lossy too in {found[LOSSY]}.\n"
    )


def tables() -> str:
    """Both tables, and the reasons that the second one counts."""
    reasons: list[str] = []
    cells = {pair: _cell(found, reasons) for pair, found in outcomes().items()}
    names = [feature.name for feature in FEATURES]
    rows = [
        f"| `{FEATURES[i].name}` | "
        + " | ".join(cells.get(frozenset((FEATURES[i], other)), ONE_SETTING) for other in FEATURES[:i])
        for i in range(1, len(names))
    ]
    lines = [f"| `{f.name}` | `{_shown(f.lines)}` | {WORDS[f.changes]} |" for f in FEATURES]
    told = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    parts = (
        ["| feature | in a recipe | changes by itself |", "|---|---|---|", *lines],
        [f"| | {' | '.join(names[:-1])} |", f"|---|{':-:|' * (len(names) - 1)}", *(f"{row} |" for row in rows)],
        told,
    )
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _cell(found: Outcome, reasons: list[str]) -> str:
    if not found.refused:
        return SIGNS[found.changes]
    if found.refused not in reasons:
        reasons.append(found.refused)
    return str(1 + reasons.index(found.refused))


def _shown(lines: Mapping[str, Any]) -> str:
    """YAML on one line."""
    return yaml.safe_dump(dict(lines), default_flow_style=True, width=1000, sort_keys=False).strip()[1:-1]


PARTS: Mapping[str, Callable[[], str]] = {"compatibility.md": tables, "acceleration.md": summary}


def between(page: str) -> tuple[str, str, str]:
    """The page before, inside and after the marks."""
    before, found, rest = page.partition(BEGIN)
    inside, ended, after = rest.partition(END)
    assert found and ended, "the page has lost its marks"
    return before + BEGIN, inside, END + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into the pages in docs/")
    if not parser.parse_args().write:
        print(tables(), end="")
        return
    for name, part in PARTS.items():
        before, _, after = between((DOCS / name).read_text())
        (DOCS / name).write_text(f"{before}{part()}{after}")


if __name__ == "__main__":
    main()

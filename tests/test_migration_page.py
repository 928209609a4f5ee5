"""docs/from-sglang-and-diffusers.md: every name of ours on it exists, every foreign one leads to it, and what it says
works or does not yet is what a plan accepts or refuses."""

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import typer

from difftool.cli.main import app
from difftool.cli.sglang import PREFIX, RECIPE_KEYS
from difftool.errors import RecipeError
from difftool.planning.availability import check_available
from difftool.recipe.flag_table import FLAGS
from difftool.recipe.flags import LORA, flag_overrides, parse_set, suggest_flag
from difftool.recipe.hints import our_name
from difftool.recipe.keys import known_keys
from difftool.recipe.load import load_recipe
from difftool.report.perf import PerfDump

TEXT = (Path(__file__).parents[1] / "docs" / "from-sglang-and-diffusers.md").read_text()
COMMANDS = typer.main.get_command(app).commands
OPTIONS = {name for command in COMMANDS.values() for p in command.params for name in (*p.opts, *p.secondary_opts)}
KEY = re.compile(r"([a-z_]+(?:\.[a-z_0-9]+)+)(?:: (.+))?")
SAMPLES = ("2", "bf16", "x")  # one of them is right for every flag that is named without a value
NO_HINT = {"vae", "prompt_2"}  # a role is the same word in both; an argument of one family


@dataclass(frozen=True)
class Row:
    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    now: str


def code(text):
    return tuple(re.findall(r"`([^`]+)`", text))


def rows(title):
    """The table under a heading, or below a table whose first head cell says so."""
    start = TEXT.index(f"\n{title}\n") if title.startswith("#") else TEXT.index(f"\n| {title} |")
    table = re.search(r"(?:^\|.*\n)+", TEXT[start + 1 :], re.M)[0]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]
    return [Row(code(theirs), code(ours), now.strip(" |")) for theirs, ours, now in cells]


TABLES = {
    title: rows(title)
    for title in (
        "## SGLang Diffusion", "### Flags of another name or meaning", "### Flat files", "### Variables",
        "## vLLM-Omni", "`from_pretrained`", "argument of the call", "method",
    )
}  # fmt: skip
EVERY = [row for table in TABLES.values() for row in table]


def load(overrides):
    return load_recipe({"model": "org/any"}, overrides).recipe


def flag(text):
    """`--tp-size 2` as overrides; without a value, with one that suits it. None for a flag that is no recipe key."""
    name, *values = text.split()
    if all(name not in known.names for known in FLAGS):
        assert name in OPTIONS, f"{name} is no flag of difftool"
        return None
    kind = next(known.kind for known in FLAGS if name in known.names)
    others = {"--lora-path": "x"} if name in LORA else {}
    for value in [True] if kind == "switch" else values or SAMPLES:
        overrides = flag_overrides({**others, name: value})
        try:
            load(overrides)
        except RecipeError:
            continue
        return overrides
    raise AssertionError(f"{text}: no value fits")


def is_applied(overrides, partners=()):
    """Whether a plan accepts these keys. `partners` are those of the same row, which some keys need beside them."""
    try:
        recipe = load(overrides)
    except RecipeError:
        recipe = load(partners)
    return not check_available(recipe.model_dump(mode="json", by_alias=True))


def settings(token):
    """The overrides that a token of ours stands for; None where it is a command, a plain flag, or a word."""
    if token.startswith("--"):
        return flag(token)
    key = KEY.fullmatch(token)
    return None if key is None else [parse_set(f"{key[1]}={key[2]}")]


def state(token, row):
    """Whether a token of ours works; None where that cannot be said of it."""
    if token.startswith("difftool "):
        words = token.split()
        return words[1] in COMMANDS and all(word in OPTIONS for word in words if word.startswith("--"))
    found = settings(token)
    if found is None:
        return True if token.startswith("--") else None
    return is_applied(found, [override for other in row.ours for override in settings(other) or ()])


@pytest.mark.parametrize("row", EVERY, ids=lambda row: row.theirs[0])
def test_what_is_said_to_work_works_and_what_is_not_does_not(row):
    states = {token: state(token, row) for token in row.ours}
    known = {token: works for token, works in states.items() if works is not None}
    if row.now == "by model":
        assert known and all(key.startswith(("sampling.", "--image")) for key in known)
    elif row.now == "no":
        assert not any(KEY.fullmatch(token) for token in row.ours)
    else:
        assert row.now in ("yes", "not yet"), row
        assert known and set(known.values()) == {row.now == "yes"}, f"the page says {row.now!r}: {known}"


@pytest.mark.parametrize(("start", "works"), [("Applied: ", True), ("By model: ", None)])
def test_flags_of_the_same_name_are_ours(start, works):
    paragraph = TEXT.split(f"\n{start}")[1].split("\n\n")[0]
    flags = code(paragraph)
    assert flags
    overrides = {name: flag(name) for name in flags}
    if works is None:
        assert all(key.key.startswith("sampling.") for found in overrides.values() for key in found)
    else:
        wrong = [name for name, found in overrides.items() if found is not None and is_applied(found) is not works]
        assert not wrong


def named_flags(row):
    return {name for token in row.ours for name in re.findall(r"--[a-z-]+", token)}


def test_a_foreign_flag_is_answered_with_ours():
    own = {name for known in FLAGS for name in known.names}
    tables = (TABLES["### Flags of another name or meaning"], TABLES["## vLLM-Omni"])
    foreign = {
        (theirs.split()[0], frozenset(named_flags(row) & own))
        for table in tables for row in table for theirs in row.theirs if theirs.startswith("--")
    }  # fmt: skip
    unknown = {(name, ours) for name, ours in foreign if name not in OPTIONS and ours}
    assert len(unknown) >= 10
    assert [(name, suggest_flag(name), set(ours)) for name, ours in unknown if suggest_flag(name) not in ours] == []


def test_a_foreign_argument_is_answered_with_ours():
    names = {
        (name, row.ours)
        for title in ("argument of the call", "`from_pretrained`", "## vLLM-Omni") for row in TABLES[title]
        for theirs in row.theirs for name in re.findall(r"^([a-z_0-9]+)=", theirs)
        if row.now != "no" and name not in NO_HINT
    }  # fmt: skip
    assert len(names) >= 15
    for name, ours in names:
        answers = {our_name(name), *(key for key in known_keys() if key.rpartition(".")[2] == name)} - {None}
        keys = [KEY.fullmatch(token)[1] for token in ours if KEY.fullmatch(token)]
        close = [key for answer, key in product(answers, keys) if key == answer or key.startswith(f"{answer}.")]
        assert close, f"{name}: difftool answers {answers or 'nothing'}, the page says {keys}"


@pytest.mark.parametrize("row", TABLES["### Flat files"], ids=lambda row: row.theirs[0])
def test_a_flat_key_is_the_key_beside_it(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("flat.yaml").write_text("\n".join(("model_path: org/any", *row.theirs)))
    flat = load_recipe("flat.yaml").recipe
    keys = [parse_set(f"{match[1]}={match[2]}") for token in row.ours if (match := KEY.fullmatch(token))]
    assert flat == load([*keys, parse_set("model.path=org/any")])
    assert (flat != load([])) is bool(keys)


def test_every_cache_variable_is_there():
    table = {
        theirs: ours for row in TABLES["### Variables"] for theirs, ours in zip(row.theirs, row.ours, strict=False)
    }
    said = {name: KEY.fullmatch(key)[1] for name, key in table.items() if name.startswith(PREFIX)}
    ours = {PREFIX + name: ".".join(("cache", *path)) for name, path in RECIPE_KEYS.items()}
    assert said == {**ours, f"{PREFIX}SECONDARY_FN": "cache.secondary.fn_compute_blocks"}


def test_the_dump_has_the_fields_that_are_named():
    paragraph = TEXT.split("and more: ")[1].split(" mean the same")[0]
    fields = {field.alias or name for name, field in PerfDump.model_fields.items()}
    assert set(code(paragraph)) <= fields and len(code(paragraph)) == 9
    assert "samples" in fields

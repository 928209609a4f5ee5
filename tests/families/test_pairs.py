"""Every two features of a run: refused with a reason, or one changes no more of what the other makes than by itself.

Whole plans of a tiny video model, by one rank and by several; graphs are traced as ever, and run as they are.
"""

import json
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import yaml
from families.pairs import make
from families.running import case_named
from families.test_loras import pairs as lora_of
from pytest import mark, param
from safetensors.torch import save_file
from torch import nn

from difftool.cli.main import main
from difftool.launch import open_records
from difftool.parallel.world import World
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.tree import at
from difftool.recipe.load import load_recipe
from scripts.compatibility import DOCS, EXACT, FEATURES, LOSSY, PARTS, ROUNDING, between, both, outcome, pairs

LIMIT = 1e-5  # of pixels in [0, 1], after the full schedule in fp32: rounding, as sums are made in another order
SEEN = 100 * LIMIT  # what is lossy changes some pixel by more
AGAIN = 0.2  # of what is lossy: what it rounds otherwise where its inputs differ in their last bits
TWICE = 2  # what is lossy changes of another lossy run, in what it changes of the plain one
PROMPTS = [{"prompt": "a red circle", "seed": 7}, {"prompt": "two cats", "seed": 8}]
SAMPLING = {
    "height": 48,
    "width": 80,
    "num_frames": 5,
    "num_inference_steps": 5,
    "max_sequence_length": 24,
    "guidance_scale": 5.0,
    "negative_prompt": "",
}
QUICK = ("dbcache", "teacache", "int8", "regional", "LoRA", "layerwise")  # on one rank, by kernels that are fast there


@dataclass(frozen=True)
class Made:
    """The pixels of every item, and what `effective` of the dump says."""

    pixels: list[np.ndarray]
    effective: dict

    @property
    def decisions(self):
        """Of a cache: which steps it computed."""
        samples = self.effective.get("cache", {}).get("samples", [])
        return [{name: each["decisions"] for name, each in sample["denoisers"].items()} for sample in samples]


@pytest.fixture(scope="module")
def models(saved, tmp_path_factory):
    """The tiny checkpoint, a LoRA for it, and a checkpoint into which that was merged by hand."""
    folder = tmp_path_factory.mktemp("merged")
    pipeline = case_named("wan21-t2v").build()
    lora = {key: 0.2 * tensor for key, tensor in lora_of(pipeline.transformer).items()}
    save_file(lora, folder / "every.safetensors")
    for name, layer in pipeline.transformer.named_modules():
        if isinstance(layer, nn.Linear):
            down, up = (lora[f"transformer.{name}.lora_{side}.weight"] for side in "AB")
            layer.weight.data += up @ down
    pipeline.save_pretrained(folder / "merged")
    return {"plain": saved("wan21-t2v"), "merged": folder / "merged", "lora": folder / "every.safetensors"}


@pytest.fixture(scope="module")
def recipe_of(models):
    """`recipe_of(*features)`: the tiny model with all of them. `merged`: the one that has the LoRA in its weights."""

    def recipe(*features, merged=False, items=1, folder="made"):
        made = {
            "model": {"path": str(models["merged" if merged else "plain"])},
            "sampling": {"prompts": PROMPTS[:items], **SAMPLING},
            "launch": {"device": "cpu", "threads": 1},
            "output": {"dir": str(folder), "name": "{index}", "format": "npz"},
        }
        for feature in features:
            made = both(made, feature.lines)
        if "lora" in made["model"]:
            made["model"]["lora"] = [str(models["lora"])]
        return made

    return recipe


@pytest.fixture(scope="module")
def made(recipe_of, ranks, tmp_path_factory):
    """`made(*features)`: what that recipe makes, made once."""

    @cache
    def run(*features, merged=False, items=1):
        folder = tmp_path_factory.mktemp("made")
        recipe = recipe_of(*features, merged=merged, items=items, folder=folder)
        plan = make_plan(load_recipe(recipe), run=RunOptions())
        records, world = open_records(plan), plan.degrees.num_gpus
        if world == 1:
            make(World(), records=str(records))
        else:
            ranks.run("families.pairs:make", world=world, timeout_s=240, records=str(records))
        effective = json.loads((records / "perf.json").read_text())["effective"]
        return Made([pixels_of(folder / f"{index}.npz") for index in range(items)], effective)

    return run


def pixels_of(file):
    with np.load(file) as arrays:
        return arrays["pixels"]


def difference(one, other):
    """Of two runs, the largest of a pixel."""
    return max(float(np.abs(a - b).max()) for a, b in zip(one.pixels, other.pixels, strict=True))


def is_shown(found, feature):
    """Whether the run had it, by its dump."""
    return all(at(found.effective, key) == value for key, value in feature.shown.items())


def items_of(*features):
    """Two for ranks that make an item each."""
    return 2 if {feature.name for feature in features} & {"dp", "hsdp"} else 1


def marked(*features):
    quick = all(feature.name in QUICK for feature in features)
    return param(*features, id="-".join(feature.name for feature in features), marks=() if quick else mark.slow)


@pytest.mark.parametrize("feature", [marked(feature) for feature in FEATURES])
def test_a_feature_by_itself_changes_what_the_table_says(made, feature):
    items = items_of(feature)
    found, plain = made(feature, items=items), made(merged=feature.name == "LoRA", items=items)
    assert is_shown(found, feature)
    changed = difference(found, plain)
    assert changed > SEEN if feature.changes == LOSSY else changed <= LIMIT * feature.changes


@pytest.mark.parametrize(("first", "other"), [marked(*pair) for pair in pairs()])
def test_of_two_features_one_changes_no_more_of_the_other_than_the_table_says(recipe_of, made, first, other):
    said = outcome(first, other, recipe_of())
    if said.refused:
        assert said == outcome(first, other)
        return
    items, merged = items_of(first, other), first.name == "LoRA"
    found, alone = made(first, other, items=items), made(other, merged=merged, items=items)
    assert is_shown(found, first) and is_shown(found, other)
    assert difference(found, alone) <= limit(made, first, other, said.changes)
    if said.changes != LOSSY:
        assert found.decisions == alone.decisions


def limit(made, first, other, changes):
    """How far a run of both may be from one of the other."""
    if changes == EXACT:
        return 0
    if changes == ROUNDING and other.name != "int8":
        return LIMIT
    if changes == ROUNDING:
        return AGAIN * difference(made(other), made())
    return TWICE * difference(made(first if first.changes == LOSSY else other), made())


def test_a_pair_that_is_refused_ends_the_command_with_the_reason_of_the_table(recipe_of, tmp_path, capsys):
    refused = [(pair, said) for pair in pairs() if (said := outcome(*pair).refused)]
    assert refused
    for pair, said in refused:
        (tmp_path / "pair.yaml").write_text(yaml.safe_dump(recipe_of(*pair, folder=tmp_path / "made")))
        assert main(["generate", str(tmp_path / "pair.yaml")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("page", PARTS)
def test_a_page_has_what_the_table_says(page):
    assert between((DOCS / page).read_text())[1] == PARTS[page](), "run scripts/compatibility.py --write"

"""Three hundred seeded mutations of good recipes: whatever comes in, only RecipeError may come out."""

import random

import pytest

from difftool.errors import RecipeError
from difftool.recipe.load import load_recipe
from difftool.recipe.schema import Recipe

SEEDS = (
    """model: {path: a/b, lora: [x/y, {path: z, strength: 0.5}]}
stages:
  denoising: {precision: bf16, attention: {name: fa, self: fa3}}
  decoding: {tiling: {name: on, tile_sample_min_height: 256}}
parallel: {num_gpus: 8, cfg: 2}
cache: {backend: dbcache, scm: {compute_bins: [1, 2], cache_bins: [2, 1]}, teacache: {coefficients: [1.0]}}
sampling:
  prompts:
  - {prompt: a, id: b}
  - prompt: c
    seed: random
  scheduler: {sigmas: [1, 0.5]}
  extra: {x: &x {y: 1}, z: *x}
sweep: {matrix: {cache.residual_diff_threshold: [.08, .12]}}
memory: {budget: 24GiB}
""",
    """model_path: a/b
prompt: x
vae_config: {load_decoder: true, tile_sample_min_height: 3}
lora_path: [a, b]
text_encoder_precisions: [fp16]
offload: {denoising: none}
devices: 4,5
use_hsdp: true
vae_sp: true
""",
    """{"model": "a/b", "sampling": {"prompt": ["a", "\\u00e9"], "seed": 3, "image": ["x.png"]},
"quality": {"reference": {"without": ["cache"]}}}
""",
)
PIECES = (
    *("[", "]", "{", "}", ": ", ":", "- ", "\n", "\n  ", "\t", "#", "&a ", "*a", "<<: "),
    *("!!int ", "|", ">", "%", "@", "?", "model", "sampling", "self", "extends: r.yaml\n", "schema", "name"),
    *("null", "true", ".nan", ".inf", "1e999", "0x", "-1", "''", '"', "'", "\\", "\x00", "\ud7ff", "\u2028"),
    *("---", "...", "9" * 50, "none", "auto", ",", ", ,"),
)


def mutated(text, draw):
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(text) + 1)
        end = min(len(text), start + draw.choice((0, 0, 1, 2, 8)))
        text = text[:start] + draw.choice(PIECES) + text[end:]
    return text


def test_only_recipe_errors_come_out_of_mutated_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = random.Random(20240607)
    refused = 0
    for number in range(300):
        text = mutated(draw.choice(SEEDS), draw)
        (tmp_path / "r.yaml").write_text(text, encoding="utf-8", newline="")
        try:
            recipe = load_recipe("r.yaml").recipe
        except RecipeError as error:
            refused += 1
            assert all(problem.message and "pydantic" not in problem.message for problem in error.problems), text
        else:
            assert Recipe.model_validate(recipe.model_dump(mode="json", by_alias=True)) == recipe, (number, text)
    assert 100 < refused < 300


VALUES = (None, True, 0, -1, 1.5, float("nan"), 10**400, "x", "", [], [1], ["x", None], {}, {"x": 1}, object())


def mutated_mapping(value, draw, depth=0):
    """The mapping with about one value in six replaced by any other."""
    if draw.random() < 0.15 and depth:
        return draw.choice(VALUES)
    if isinstance(value, dict):
        return {key: mutated_mapping(item, draw, depth + 1) for key, item in value.items()}
    return [mutated_mapping(item, draw, depth + 1) for item in value] if isinstance(value, list) else value


def test_only_recipe_errors_come_out_of_mutated_mappings():
    draw = random.Random(7)
    good = load_recipe({"model": {"path": "a/b", "lora": ["x/y"]}, "sampling": {"prompts": [{"prompt": "a"}]}}).recipe
    dump = good.model_dump(mode="json", by_alias=True)
    for _ in range(300):
        mapping = mutated_mapping(dump, draw)
        try:
            load_recipe(mapping)
        except RecipeError as error:
            assert str(error)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_seeds_of_the_mutations_are_good(tmp_path, seed):
    (tmp_path / "r.yaml").write_text(seed, encoding="utf-8")
    assert load_recipe(tmp_path / "r.yaml")

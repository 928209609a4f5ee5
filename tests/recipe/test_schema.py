"""The vocabulary itself: defaults, short forms, spellings, the way back to a mapping, and the JSON Schema."""

import subprocess
import sys
from typing import get_args

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from difftool.attention import NAMES, chosen
from difftool.recipe.keys import field_shape, fields_of, find, known_keys
from difftool.recipe.schema import Recipe, json_schema, parse_bytes
from difftool.recipe.stages import AttentionName

FULL = {
    "schema": "difftool/v1",
    "name": "everything",
    "model": {
        "path": "org/model",
        "revision": "abc",
        "backend": "sglang",
        "components": {"vae": "org/vae"},
        "lora": ["org/lora", {"path": "./x.safetensors", "strength": -0.5, "target": "transformer_2"}],
    },
    "stages": {
        "text_encoding": {"precision": ["fp16", "bfloat16"], "offload": "after_use", "tp": 2},
        "denoising": {
            "attention": {"name": "sliding_tile_attn", "mask_strategy_file_path": "/m.json", "cross": "native"},
            "quantization": {"name": "fp8", "exclude": ["proj_out"]},
            "compile": "full",
            "offload": {"name": "layerwise", "prefetch": 2},
        },
        "decoding": {"tiling": {"name": "on", "tile_sample_min_height": 256}, "parallel": "tiled", "precision": "fp32"},
    },
    "parallel": {"num_gpus": 8, "cfg": 2, "hsdp": 4},
    "memory": {"budget": "24GiB"},
    "cache": {
        "backend": "dbcache",
        "scm": {"compute_bins": [8, 3], "cache_bins": [1, 2]},
        "secondary": {"fn_compute_blocks": 2},
    },
    "sampling": {
        "prompts": [{"prompt": "a", "id": "one", "scheduler": {"flow_shift": 3}}, {"prompt": "b", "seed": "random"}],
        "guidance_scale": 4,
        "scheduler": {"sigmas": [1.0, 0.5], "config": {"shift_terminal": None}},
        "extra": {"nested": {"deep": [1, None, "x"]}},
    },
    "quality": {"tier": "near", "reference": {"without": ["cache"]}},
    "sweep": {"matrix": {"sampling.seed": [1, 2]}, "exclude": [{"sampling.seed": 2}]},
    "launch": {"devices": [4, 5], "threads": 2},
}
MOBA = {"temporal_chunk_size": 2, "spatial_chunk_size": [3, 4], "st_chunk_size": [4, 6, 4]}
MOBA_DEFAULTS = {  # those of FastVideo and SGLang
    "moba_select_mode": "threshold",
    "moba_threshold": 0.25,
    "moba_threshold_type": "query_head",
    "first_full_layer": 0,
    "first_full_step": 12,
    "temporal_layer": 1,
    "spatial_layer": 1,
    "st_layer": 1,
}
SHORT = [
    ({"model": "a/b"}, {"model": {"path": "a/b"}}),
    ({"cache": "dbcache"}, {"cache": {"backend": "dbcache"}}),
    (
        {"model": {"path": "a/b", "components": {"vae": "x/y"}}},
        {"model": {"path": "a/b", "components": {"vae": {"path": "x/y"}}}},
    ),
    ({"model": {"path": "a/b", "lora": ["x/y"]}}, {"model": {"path": "a/b", "lora": [{"path": "x/y"}]}}),
    ({"sampling": {"scheduler": "Euler"}}, {"sampling": {"scheduler": {"name": "Euler"}}}),
    ({"stages": {"decoding": {"tiling": True}}}, {"stages": {"decoding": {"tiling": {"name": "on"}}}}),
    ({"stages": {"decoding": {"tiling": False}}}, {"stages": {"decoding": {"tiling": "none"}}}),
    ({"stages": {"denoising": {"attention": "fa3"}}}, {"stages": {"denoising": {"attention": {"name": "fa3"}}}}),
    ({"stages": {"denoising": {"precision": "bfloat16"}}}, {"stages": {"denoising": {"precision": "bf16"}}}),
    (
        {"stages": {"denoising": {"attention": {"name": "vmoba_attn", "moba_config": MOBA}}}},
        {"stages": {"denoising": {"attention": {"name": "vmoba_attn", "moba_config": {**MOBA, **MOBA_DEFAULTS}}}}},
    ),
    ({"model": {"path": "a/b", "backend": "sglang"}}, {"model": {"path": "a/b", "backend": "native"}}),
    ({"memory": {"budget": "24GiB"}}, {"memory": {"budget": "24GiB"}}),
]
DIFFUSERS_NAMES = {
    "native": "torch_sdpa",
    "flash": "fa2",
    "_flash_3": "fa3",
    "_flash_3_hub": "fa3",
    "sage": "sage_attn",
    "_native_cudnn": "cudnn",
}


def recipe(**sections):
    return Recipe.model_validate({"model": "a/b", **sections})


@pytest.mark.parametrize("mapping", [{"model": "a/b"}, FULL])
def test_a_dump_validates_to_an_equal_recipe(mapping):
    first = Recipe.model_validate(mapping)
    dump = first.model_dump(mode="json", by_alias=True)
    assert Recipe.model_validate(dump) == first
    assert Recipe.model_validate(dump).model_dump(mode="json", by_alias=True) == dump


@pytest.mark.parametrize(("short", "long"), SHORT)
def test_a_short_form_means_its_long_form(short, long):
    assert recipe(**short) == recipe(**long)


@pytest.mark.parametrize(("theirs", "ours"), DIFFUSERS_NAMES.items())
def test_attention_has_the_names_of_diffusers_too(theirs, ours):
    assert recipe(stages={"denoising": {"attention": theirs}}).stages.denoising.attention.name == ours


def test_a_recipe_names_every_backend_that_there_is():
    assert set(get_args(get_args(AttentionName)[0])) == set(NAMES)


def test_attention_may_differ_for_self_and_cross():
    both = {"name": "fa", "cross": "torch_sdpa"}
    attention = recipe(stages={"denoising": {"attention": both}}).stages.denoising.attention
    said = attention.model_dump(mode="json", by_alias=True)
    assert [chosen(said, "transformer", role).name for role in ("self", "cross")] == ["fa", "torch_sdpa"]


def test_a_choice_without_options_is_written_as_its_name():
    stages = recipe().model_dump(mode="json", by_alias=True)["stages"]
    assert stages["denoising"]["attention"] == "auto"
    assert stages["decoding"]["tiling"] == "auto"


def test_an_entry_of_prompts_holds_only_what_was_set():
    dump = recipe(sampling={"prompts": [{"prompt": "a", "seed": 3}]}).model_dump(mode="json", by_alias=True)
    assert dump["sampling"]["prompts"] == [{"prompt": "a", "seed": 3}]


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        recipe().sampling.seed = 1  # type: ignore[misc]


def test_an_int_is_a_number_and_true_is_none():
    assert recipe(sampling={"guidance_scale": 4}).sampling.guidance_scale == 4.0
    for wrong in (True, "4", [4]):
        with pytest.raises(ValidationError):
            recipe(sampling={"guidance_scale": wrong})


@pytest.mark.parametrize(
    ("text", "size"), [("1B", 1), ("2KB", 2000), ("24GiB", 24 * 2**30), ("0.5 MiB", 2**19), ("80GB", 80 * 10**9)]
)
def test_sizes_are_read_with_their_unit(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "24", "GiB", "-1GiB", "1 gb", "1e3GiB", "1GiB "])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a size such as 24GiB"):
        parse_bytes(text)


def test_every_key_has_a_description_and_null_only_where_it_is_the_default():
    sections = [Recipe, *(shape.section for key in known_keys() if (shape := find(tuple(key.split(".")))).section)]
    sections += [
        field_shape(section, key).item.section
        for section in sections
        for key in fields_of(section)
        if field_shape(section, key).item and field_shape(section, key).item.section
    ]
    assert len(sections) > 20
    for section in sections:
        for name, field in fields_of(section).items():
            assert field.description, f"{section.__name__}.{name}"
            if not field.is_required() and type(None) in get_args(field.annotation):
                assert field.get_default() is None, f"{section.__name__}.{name}"


def test_the_json_schema_is_one_and_accepts_what_difftool_accepts():
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for mapping in (FULL, {"model": "a/b"}, *({"model": "a/b", **short} for short, _ in SHORT)):
        assert list(validator.iter_errors(mapping)) == []


@pytest.mark.parametrize(
    "mapping",
    [
        {},
        {"model": 3},
        {"model": "a/b", "samplng": {}},
        {"model": "a/b", "sampling": {"height": 0}},
        {"model": "a/b", "stages": {"denoising": {"attention": "fast"}}},
        {
            "model": "a/b",
            "stages": {
                "denoising": {"attention": {"name": "vmoba_attn", "moba_config": {**MOBA, "st_chunk_size": [1, 2]}}}
            },
        },
        {"model": "a/b", "cache": {"backend": "tea"}},
        {"model": "a/b", "parallel": {"num_gpus": "many"}},
    ],
)
def test_the_json_schema_refuses_what_difftool_refuses(mapping):
    assert list(Draft202012Validator(json_schema()).iter_errors(mapping))
    with pytest.raises(ValidationError):
        Recipe.model_validate(mapping)


def test_the_json_schema_describes_every_key():
    root = json_schema()
    assert root["properties"]["model"]["description"] == "which weights"
    assert root["$defs"]["ParallelSpec"]["properties"]["tp"] == {
        "default": 1,
        "description": "tensor parallel",
        "maximum": 2**31 - 1,
        "minimum": 1,
        "title": "Tp",
        "type": "integer",
    }


def test_loading_recipes_imports_nothing_heavy():
    code = "import sys, difftool.recipe.load, difftool.recipe.prompts; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "diffusers", "transformers", "huggingface_hub", "typer", "fastapi"}
    assert not set(done.stdout.split()) & heavy

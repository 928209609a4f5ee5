"""The one table of flags, the overrides made from it, and SGLang's flat files."""

import re

import pytest

from difftool.errors import RecipeError
from difftool.recipe.flag_table import FOREIGN_FLAGS
from difftool.recipe.flags import FLAGS, flag_overrides, suggest_flag
from difftool.recipe.flat import DIRECT, SWITCHES, flat_keys
from difftool.recipe.hints import FOREIGN
from difftool.recipe.keys import find, known_keys, value_errors
from difftool.recipe.load import load_recipe
from difftool.recipe.schema import ComponentSpec

EXAMPLES = {
    "int": (2, "auto", "random"),
    "number": (1.5,),
    "word": ("auto", "none", "24GiB"),
    "text": ("abc:1",),
    "path": ("x",),
}
KEYED = [flag for flag in FLAGS if flag.kind not in ("stage_mode",) and flag.key != "model.lora"]


def path(key):
    return tuple(key.split("."))


def loaded(**given):
    return load_recipe({"model": "a/b"}, flag_overrides(given)).recipe


def refusal(given):
    with pytest.raises(RecipeError) as caught:
        flag_overrides(given)
    return str(caught.value)


def test_names_are_unique_and_long_names_come_first():
    names = [name for flag in FLAGS for name in flag.names]
    assert len(names) == len(set(names))
    assert all(flag.names[0].startswith("--") and "_" not in flag.names[0] for flag in FLAGS)


@pytest.mark.parametrize("flag", KEYED, ids=lambda flag: flag.names[0])
def test_every_flag_sets_a_key_of_the_schema_to_a_value_it_takes(flag):
    for key in (flag.key, *flag.also):
        assert find(path(key)) is not None, key
        if flag.kind == "switch":
            assert value_errors(path(key), flag.value) == []
            assert value_errors(path(key), flag.off) == []
        elif flag.kind == "devices":
            assert value_errors(path(key), [4, 5]) == []
        elif flag.kind != "file_name":
            assert any(not value_errors(path(key), value) for value in EXAMPLES[flag.kind]), key
            if flag.kind in ("text", "path"):
                assert not value_errors(path(key), "1e3") and not value_errors(path(key), "null")
            elif flag.kind == "int":
                assert value_errors(path(key), 1.5) and value_errors(path(key), "1e3")


def test_a_flag_that_lists_its_words_lists_auto_too():
    listing = [flag for flag in FLAGS if flag.kind == "word" and re.fullmatch(r"(\w+, )+\w+ or \w+", flag.help)]
    assert len(listing) >= 6
    takes = {flag.names[0]: not value_errors(path(flag.key), "auto") for flag in listing}
    assert takes == {flag.names[0]: "auto" in flag.help for flag in listing}


def test_refining_flags_and_foreign_names_lead_somewhere():
    names = {name for flag in FLAGS for name in flag.names}
    assert {flag.refined_by for flag in FLAGS} - {""} <= names
    assert set(FOREIGN_FLAGS.values()) <= names and not set(FOREIGN_FLAGS) & names
    targets = [*FOREIGN.values(), *DIRECT.values(), *(key for key, _, _ in SWITCHES.values())]
    assert [key for key in targets if find(path(key)) is None] == []
    ours = {key.rpartition(".")[2] for key in known_keys()} - {"flow_shift", "sigmas"}
    assert not set(FOREIGN) & ours


def test_flags_become_typed_values_of_the_recipe():
    recipe = loaded(
        prompt=["1e3"], seed="7", height="512", guidance_scale="1e0", num_gpus="auto", tp_size="2", device="cpu",
        memory_budget="24GiB", model_path="c/d", vae_path="org/vae", attention_backend="native", negative_prompt="null",
        text_encoder_precisions=["fp16", "fp32"], cache_backend="dbcache", devices="4,5", warmup="2", output_path="out",
    )
    assert (recipe.sampling.prompt, recipe.sampling.negative_prompt) == ("1e3", "null")
    assert (recipe.sampling.seed, recipe.sampling.height, recipe.sampling.guidance_scale) == (7, 512, 1.0)
    assert (recipe.parallel.num_gpus, recipe.parallel.tp, recipe.launch.devices) == ("auto", 2, (4, 5))
    assert (recipe.model.path, recipe.model.components) == ("c/d", {"vae": ComponentSpec(path="org/vae")})
    assert recipe.stages.denoising.attention.name == "torch_sdpa"
    assert recipe.stages.text_encoding.precision == ("fp16", "fp32")
    assert (recipe.cache.backend, recipe.perf.warmup, recipe.output.dir) == ("dbcache", 2, "out")


def test_a_flag_may_be_given_by_any_of_its_names_and_what_was_not_given_is_nothing():
    overrides = flag_overrides({"--usp": "2", "-p": ("a", "b"), "--seed": None, "--vae-slicing": False, "--image": []})
    assert [(o.key, o.value, o.origin) for o in overrides] == [
        ("parallel.ulysses", "2", "--ulysses-degree"),
        ("sampling.prompt", ["a", "b"], "--prompt"),
    ]


def test_a_wrong_value_of_a_flag_is_answered_with_the_flag():
    with pytest.raises(RecipeError) as caught:
        loaded(height="big", tp_size="0")
    assert str(caught.value).split("\n") == [
        "--height: error: sampling.height: 'big' is not a whole number",
        "--tp-size: error: parallel.tp: 0 is too small; at least 1",
    ]


def test_switches_set_fixed_values():
    recipe = loaded(enable_torch_compile=True, enable_cpu_offload=True, vae_tiling=True, use_hsdp=True)
    stages = recipe.stages
    assert (stages.denoising.compile, stages.decoding.tiling.name, recipe.parallel.hsdp) == ("regional", "on", "all")
    roles = (stages.text_encoding, stages.image_encoding, stages.denoising, stages.decoding)
    assert [role.offload.name for role in roles] == ["after_use"] * 4


def test_offload_takes_stages_and_modes():
    recipe = loaded(offload=["denoising=layerwise", "decoding=none"])
    assert (recipe.stages.denoising.offload.name, recipe.stages.decoding.offload.name) == ("layerwise", "none")
    assert refusal({"offload": ["vae=none", "denoising"]}).split("\n") == [
        "--offload: error: 'vae' is not one of the stages text_encoding, image_encoding, denoising, decoding",
        "--offload: error: 'denoising' is not STAGE=MODE, for example denoising=layerwise",
    ]
    with pytest.raises(RecipeError) as caught:
        loaded(offload=["denoising=cpu"])
    assert str(caught.value) == (
        "--offload denoising=cpu: error: stages.denoising.offload: 'cpu' is not one of auto, none, after_use, module, "
        "layerwise"
    )


def test_two_flags_that_contradict_are_refused_and_a_refinement_is_not():
    assert refusal({"enable_torch_compile": True, "enforce_eager": True}) == (
        "--enforce-eager: error: stages.denoising.compile: set by --enable-torch-compile and by --enforce-eager; "
        "give one of them"
    )
    for given in ({"use_hsdp": True, "hsdp_shard_size": "4"}, {"hsdp_shard_size": "4", "use_hsdp": True}):
        assert loaded(**given).parallel.hsdp == 4
    assert loaded(dit_cpu_offload=True, enable_cpu_offload=True).stages.denoising.offload.name == "after_use"


def test_lora_lists_are_paired():
    recipe = loaded(lora_path=["org/one", "org/two"], lora_nickname=["a", "b"], lora_strength=["0.5", "-1"])
    assert [(lora.path, lora.nickname, lora.strength) for lora in recipe.model.lora] == [
        ("org/one", "a", 0.5), ("org/two", "b", -1.0),
    ]
    assert [lora.path for lora in loaded(lora_path="org/one").model.lora] == ["org/one"]


def test_lora_lists_of_different_lengths_are_refused():
    assert refusal({"lora_path": ["x", "y"], "lora_strength": ["1"]}) == (
        "--lora-path: error: 2 --lora-path, 1 --lora-strength; give one of each for every --lora-path"
    )
    assert refusal({"lora_nickname": ["x"]}) == (
        "--lora-nickname: error: 1 --lora-nickname; give one of each for every --lora-path"
    )
    assert refusal({"lora_path": ["x"], "lora_strength": ["strong"]}) == (
        "--lora-strength: error: model.lora.0.strength: 'strong' is not a number"
    )


def test_devices_are_indices():
    expected = "--devices: error: 'cuda:0' is not a list of device indices such as 4,5,6,7"
    assert refusal({"devices": "cuda:0"}) == expected


@pytest.mark.parametrize(
    ("given", "name", "format"),
    [("cat.mp4", "cat", "mp4"), ("a.b.JPEG", "a.b", "jpg"), ("plain", "plain", "auto"), ("v1.5", "v1.5", "auto")],
)
def test_the_suffix_of_a_file_name_is_its_format(given, name, format):
    output = loaded(output_file_name=given).output
    assert (output.name, output.format) == (name, format)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--num_gpus", "--num-gpus"),
        ("--num_gpus=4", "--num-gpus"),
        ("--torch-dtype", "--dit-precision"),
        ("--torch_dtype", "--dit-precision"),
        ("--num-images-per-prompt", "--num-outputs-per-prompt"),
        ("--sp-size", "--sp-degree"),
        ("--regional-compile", "--compile"),
        ("--performance-mode", "--memory-budget"),
        ("--hieght", "--height"),
        ("--Seed", "--seed"),
        ("--perf-dump", "--perf-dump-path"),
        ("--qqqq", ""),
        ("--p", ""),
        ("-p", "-p"),
        ("-P", ""),
        ("-s", ""),
    ],
)
def test_a_mistyped_flag_is_answered_with_the_right_one(typed, meant):
    assert suggest_flag(typed, others=("--perf-dump-path",)) == meant


# flat files

SGLANG_JSON = """{
    "model_path": "FastVideo/FastHunyuan-diffusers",
    "prompt": "A beautiful woman in a red dress walking down a street",
    "output_path": "outputs/",
    "num_gpus": 2,
    "sp_size": 2,
    "tp_size": 1,
    "num_frames": 45,
    "height": 720,
    "width": 1280,
    "num_inference_steps": 6,
    "seed": 1024,
    "fps": 24,
    "precision": "bf16",
    "vae_precision": "fp16",
    "vae_tiling": true,
    "vae_sp": true,
    "vae_config": {
        "load_encoder": false,
        "load_decoder": true,
        "tile_sample_min_height": 256,
        "tile_sample_min_width": 256
    },
    "text_encoder_precisions": [
        "fp16",
        "fp16"
    ],
    "mask_strategy_file_path": null,
    "enable_torch_compile": false
}
"""
SGLANG_YAML = """model_path: "FastVideo/FastHunyuan-diffusers"
prompt: "A beautiful woman in a red dress walking down a street"
output_path: "outputs/"
num_gpus: 2
sp_size: 2
tp_size: 1
num_frames: 45
height: 720
width: 1280
num_inference_steps: 6
seed: 1024
fps: 24
precision: "bf16"
vae_precision: "fp16"
vae_tiling: true
vae_sp: true
vae_config:
  load_encoder: false
  load_decoder: true
  tile_sample_min_height: 256
  tile_sample_min_width: 256
text_encoder_precisions:
  - "fp16"
  - "fp16"
mask_strategy_file_path: null
enable_torch_compile: false
"""
MEANING = {
    "model": {"path": "FastVideo/FastHunyuan-diffusers"},
    "stages": {
        "text_encoding": {"precision": ["fp16", "fp16"]},
        "denoising": {"precision": "bf16", "compile": "none"},
        "decoding": {
            "precision": "fp16",
            "tiling": {"name": "on", "tile_sample_min_height": 256, "tile_sample_min_width": 256},
            "parallel": "tiled",
        },
    },
    "parallel": {"num_gpus": 2, "sp": 2, "tp": 1},
    "sampling": {
        "prompt": "A beautiful woman in a red dress walking down a street",
        "height": 720,
        "width": 1280,
        "num_frames": 45,
        "fps": 24,
        "num_inference_steps": 6,
        "seed": 1024,
    },
    "output": {"dir": "outputs/"},
}


def flat(folder, monkeypatch, text, name="flat.yaml"):
    monkeypatch.chdir(folder)
    (folder / name).write_text(text)
    return load_recipe(name)


def flat_refusal(folder, monkeypatch, text):
    with pytest.raises(RecipeError) as caught:
        flat(folder, monkeypatch, text)
    return str(caught.value)


@pytest.mark.parametrize(("name", "text"), [("config.json", SGLANG_JSON), ("config.yaml", SGLANG_YAML)])
def test_the_example_files_of_sglang_load_with_every_key_meant(tmp_path, monkeypatch, name, text):
    found = flat(tmp_path, monkeypatch, text, name)
    assert found.recipe.model_dump(mode="json", by_alias=True, exclude_unset=True) == MEANING
    line = 17 if name.endswith("json") else 16
    assert found.where("stages.decoding.parallel") == f"{name}:{line}:{15 if line == 17 else 9}"


@pytest.mark.parametrize("key", sorted(set(flat_keys()) - {"vae_config", "model_path"}))
def test_every_key_of_a_flat_file_may_be_null(tmp_path, monkeypatch, key):
    found = flat(tmp_path, monkeypatch, f"model_path: a/b\n{key}: null\n")
    assert found.recipe == load_recipe({"model": "a/b"}).recipe


def test_switches_of_a_flat_file_may_be_false(tmp_path, monkeypatch):
    text = "model_path: a/b\nvae_tiling: false\nvae_sp: false\nenforce_eager: false\n"
    text += "use_hsdp: true\nhsdp_shard_size: 2\n"
    recipe = flat(tmp_path, monkeypatch, text).recipe
    decoding = recipe.stages.decoding
    assert (decoding.tiling.name, decoding.parallel, recipe.parallel.hsdp) == ("none", "none", 2)
    assert recipe.stages.denoising.compile == "auto"


def test_flat_files_may_hold_what_the_flags_hold(tmp_path, monkeypatch):
    text = (
        "model_path: a/b\nbackend: diffusers\ndiffusers_kwargs: {cross_attention_kwargs: {scale: 0.5}}\nport: 30010\n"
        "lora_path: [org/x, org/y]\nlora_strength: [1, 0.5]\noffload: {denoising: layerwise}\ndevices: 4,5\n"
        "attention_backend: sliding_tile_attn\nmask_strategy_file_path: mask.json\noutput_file_name: a.mp4\n"
        "save_output: true\nprompt_file: p.txt\n"
    )
    recipe = flat(tmp_path, monkeypatch, text).recipe
    assert recipe.model.diffusers_kwargs == {"cross_attention_kwargs": {"scale": 0.5}}
    assert [(lora.path, lora.strength) for lora in recipe.model.lora] == [("org/x", 1.0), ("org/y", 0.5)]
    assert recipe.stages.denoising.attention.mask_strategy_file_path == str(tmp_path / "mask.json")
    assert (recipe.stages.denoising.offload.name, recipe.launch.devices) == ("layerwise", (4, 5))
    assert (recipe.output.name, recipe.output.format, recipe.serve.port) == ("a", "mp4", 30010)
    assert recipe.sampling.prompts.file == str(tmp_path / "p.txt")


FLAT_REFUSALS = {
    "promt: x\n": "flat.yaml:2:1: error: promt: unknown field, did you mean 'prompt'?",
    "num_images_per_prompt: 2\n": "flat.yaml:2:1: error: num_images_per_prompt: unknown field; difftool says "
                                  "num_outputs_per_prompt",
    "zzzz: 2\n": "flat.yaml:2:1: error: zzzz: unknown field in a flat file",
    "height: big\n": "flat.yaml:2:9: error: sampling.height: 'big' is not a whole number",
    "vae_tiling: yes\n": "flat.yaml:2:13: error: vae_tiling: 'yes' is not true or false",
    "vae_config: 3\n": "flat.yaml:2:13: error: vae_config: 3 is not a mapping",
    "vae_config: {load_decoder: false}\n": "flat.yaml:2:28: error: vae_config.load_decoder: false is not available; "
                                           "difftool always decodes",
    "vae_config: {load_encoder: maybe}\n": "flat.yaml:2:28: error: vae_config.load_encoder: 'maybe' is not available; "
                                           "write true or false",
    "vae_config: {tile_size: 3}\n": "flat.yaml:2:14: error: vae_config.tile_size: unknown field, did you mean "
                                    "'vae_config.use_tiling'?",
    "save_output: false\n": "flat.yaml:2:14: error: save_output: false is not available; say --no-save-output on the "
                            "command line",
    "sp_size: 2\nsp_degree: 4\n": "flat.yaml:3:12: error: sp_degree: says something else than sp_size on line 2; both "
                                  "are parallel.sp",
    "lora_path: [a/b]\nlora_strength: [1, 2]\n": "flat.yaml:2:12: error: 1 lora_path, 2 lora_strength; give one of "
                                                 "each for every lora_path",
    "offload: layerwise\n": "flat.yaml:2:10: error: offload: 'layerwise' is not a mapping of stages to modes",
    "offload: {vae: none}\n": "flat.yaml:2:11: error: stages.vae: unknown field; difftool says stages.decoding",
    "devices: cuda\n": "flat.yaml:2:10: error: launch.devices.0: 'cuda' is not a whole number",
}


@pytest.mark.parametrize(("text", "expected"), FLAT_REFUSALS.items())
def test_a_wrong_flat_file_is_answered_in_its_own_words(tmp_path, monkeypatch, text, expected):
    assert flat_refusal(tmp_path, monkeypatch, "model_path: a/b\n" + text) == expected


def test_a_file_with_a_section_is_not_flat(tmp_path, monkeypatch):
    assert flat_refusal(tmp_path, monkeypatch, "model: a/b\nnum_gpus: 2\n") == (
        "flat.yaml:2:1: error: num_gpus: unknown field here; it belongs to parallel"
    )
    assert flat_refusal(tmp_path, monkeypatch, "schema: difftool/v1\nmodel_path: a/b\n").split("\n") == [
        "flat.yaml:1:1: error: model: missing; every recipe names its model, for example model: builtin:shapes-image",
        "flat.yaml:2:1: error: model_path: unknown field; difftool says model.path",
    ]

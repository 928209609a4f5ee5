"""Loading: extends, overrides, paths, and where each value came from."""

import os
from pathlib import Path

import pytest

from difftool.errors import RecipeError
from difftool.recipe import load as load_module
from difftool.recipe import lookup
from difftool.recipe.load import Override, load_recipe, parse_set
from difftool.recipe.lookup import SHIPPED
from difftool.recipe.schema import ComponentSpec


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder; `folder(name=text)` writes files into it."""
    monkeypatch.chdir(tmp_path)

    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


def message(*arguments):
    with pytest.raises(RecipeError) as caught:
        load_recipe(*arguments)
    return str(caught.value)


def test_the_shortest_recipe_loads(folder):
    folder({"r.yaml": 'model: Qwen/Qwen-Image-2512\nsampling: {prompt: "a coffee shop at dusk"}\n'})
    loaded = load_recipe("r.yaml")
    assert loaded.recipe.model.path == "Qwen/Qwen-Image-2512"
    assert loaded.recipe.sampling.prompt == "a coffee shop at dusk"
    assert loaded.provenance == {"model.path": "r.yaml:1:8", "sampling.prompt": "r.yaml:2:20"}
    assert (loaded.name, loaded.base) == ("r.yaml", Path.cwd())


def test_places_are_known_for_values_sections_and_what_is_inside_lists(folder):
    folder({"r.yaml": "model:\n  path: a/b\n  lora:\n  - x/y\nparallel: {tp: 2}\nstages: {decoding: {tiling: on}}\n"})
    loaded = load_recipe("r.yaml", [Override("sampling.seed", 3, "--seed")])
    keys = ("parallel.tp", "parallel.cfg", "model.lora.0.path", "model.lora.0.target")
    places = {key: loaded.where(key) for key in keys}
    assert places == {
        "parallel.tp": "r.yaml:5:16",
        "parallel.cfg": "r.yaml:5:11",
        "model.lora.0.path": "r.yaml:4:5",
        "model.lora.0.target": "r.yaml:4:5",
    }
    assert [loaded.where(key) for key in ("sampling.seed", "sampling", "cache.backend", "")] == ["--seed", "", "", ""]
    assert loaded.provenance == {
        "model.path": "r.yaml:2:9",
        "model.lora": "r.yaml:4:3",
        "parallel.tp": "r.yaml:5:16",
        "stages.decoding.tiling": "r.yaml:6:29",
        "stages.decoding.tiling.name": "r.yaml:6:29",
        "sampling.seed": "--seed",
    }


def test_null_is_the_default_except_in_a_free_mapping(folder):
    folder({"r.yaml": "model: a/b\ncache: null\nsampling: {seed: ~, extra: {x: null}}\nsweep:\n"})
    loaded = load_recipe("r.yaml")
    assert loaded.recipe.cache.backend == "none"
    assert (loaded.recipe.sampling.seed, loaded.recipe.sampling.extra) == (42, {"x": None})
    assert sorted(loaded.provenance) == ["model.path", "sampling.extra"]


# extends


def test_mappings_merge_lists_replace_and_null_resets(folder):
    folder({
        "base.yaml": "name: base\nmodel: {path: a/b, lora: [x/y, z/z], revision: r1}\n"
                     "sampling: {seed: 1, height: 512, extra: {a: 1, b: 2}}\n"
                     "cache: {backend: dbcache, fn_compute_blocks: 8}\n",
        "r.yaml": "extends: ./base.yaml\nmodel: {lora: [n/n]}\nsampling: {height: null, width: 64, extra: {b: 3}}\n",
    })
    recipe = load_recipe("r.yaml").recipe
    assert (recipe.name, recipe.extends) == (None, None)
    assert (recipe.model.path, [lora.path for lora in recipe.model.lora]) == ("a/b", ["n/n"])
    sampling = recipe.sampling
    assert (sampling.seed, sampling.height, sampling.width, sampling.extra) == (1, None, 64, {"a": 1, "b": 3})
    assert recipe.cache.fn_compute_blocks == 8


def test_a_plain_form_replaces_the_section_and_a_mapping_merges_into_it(folder):
    folder({
        "base.yaml": "model: {path: a/b, revision: r1}\ncache: teacache\n",
        "other.yaml": "extends: base.yaml\nmodel: c/d\ncache: {min_hit_rate: 0.5}\n",
    })
    recipe = load_recipe("other.yaml").recipe
    assert (recipe.model.path, recipe.model.revision) == ("c/d", None)
    assert (recipe.cache.backend, recipe.cache.min_hit_rate) == ("teacache", 0.5)


def test_a_prompt_takes_the_place_of_inherited_prompts(folder):
    folder({
        "base.yaml": "model: a/b\nsampling: {prompts: [{prompt: x}]}\n",
        "r.yaml": "extends: base.yaml\nsampling: {prompt: mine}\n",
    })
    assert load_recipe("r.yaml").recipe.sampling.prompts is None
    assert load_recipe("base.yaml", [Override("sampling.prompt", "p", "-p")]).recipe.sampling.prompt == "p"


def test_problems_are_located_in_the_file_that_holds_them_child_first(folder):
    folder({
        "base/base.yaml": "model: a/b\nsampling: {height: big, hieght: 3}\n",
        "r.yaml": "extends: base/base.yaml\nparallel: {tp: two}\n",
    })
    assert message("r.yaml").split("\n") == [
        "r.yaml:2:16: error: parallel.tp: 'two' is not a whole number",
        "base/base.yaml:2:20: error: sampling.height: 'big' is not a whole number",
        "base/base.yaml:2:25: error: sampling.hieght: unknown field, did you mean 'height'?",
    ]


def test_a_parent_that_cannot_be_read_does_not_hide_the_problems_of_the_child(folder):
    folder({"base.yaml": "model: [", "r.yaml": "extends: base.yaml\nfoo_bar: 1\n"})
    assert message("r.yaml").split("\n") == [
        "r.yaml:2:1: error: foo_bar: unknown field; a recipe has schema, name, extends, model, stages, parallel, "
        "memory, cache, sampling, launch, output, perf, quality, sweep, serve",
        "base.yaml:1:9: error: a value is missing here; quote a text that starts with ',' or ']'",
    ]


def test_a_cycle_is_shown_as_a_chain(folder):
    folder({
        "a.yaml": "extends: b.yaml\nmodel: a/b\n",
        "b.yaml": "extends: c.yaml\n",
        "c.yaml": "extends: ./b.yaml\n",
        "self.yaml": "model: a/b\nextends: self.yaml\n",
    })
    assert message("a.yaml") == "c.yaml:1:10: error: extends: b.yaml -> c.yaml -> b.yaml is a cycle"
    assert message("self.yaml") == "self.yaml:2:10: error: extends: self.yaml -> self.yaml is a cycle"


def test_a_chain_has_an_end(folder):
    folder({f"{n}.yaml": f"extends: {n + 1}.yaml\nmodel: a/b\n" for n in range(8)})
    folder({"8.yaml": "model: a/b\n"})
    assert load_recipe("3.yaml").recipe.model.path == "a/b"
    assert message("0.yaml") == "5.yaml:1:10: error: extends: a chain of more than 5 files"


def test_a_built_in_recipe_can_be_extended(folder, monkeypatch):
    root = folder({"shipped/shipped-one.yaml": "model: a/b\nsampling: {height: 64}\n",
                   "r.yaml": "extends: shipped-one\nsampling: {width: 32}\n",
                   "typo.yaml": "extends: shiped-one\n"})
    shipped = {"shipped-one": root / "shipped" / "shipped-one.yaml"}
    monkeypatch.setattr(load_module, "builtin_recipes", lambda: shipped)
    loaded = load_recipe("r.yaml")
    assert loaded.where("sampling.height") == "builtin/shipped-one.yaml:2:20"
    assert loaded.recipe.sampling.width == 32
    assert message("typo.yaml").split("\n")[0] == (
        "typo.yaml:1:1: error: model: missing; every recipe names its model, for example model: builtin:shapes-image"
    )
    assert message("typo.yaml").split("\n")[1] == (
        "typo.yaml:1:10: error: extends: no file and no built-in recipe 'shiped-one', did you mean 'shipped-one'?"
    )


# overrides

TYPED = {
    "sampling.prompt=1e3": ("sampling", "prompt", "1e3"),
    "sampling.prompt=null ": ("sampling", "prompt", "null "),
    "sampling.prompt=[a, b]": ("sampling", "prompt", ("a", "b")),
    "sampling.prompt=[a, b": ("sampling", "prompt", "[a, b"),
    "sampling.prompt={a cat}": ("sampling", "prompt", "{a cat}"),
    "sampling.prompt=a=b": ("sampling", "prompt", "a=b"),
    "sampling.prompt=true": ("sampling", "prompt", "true"),
    "sampling.prompt=": ("sampling", "prompt", ""),
    "sampling.guidance_scale=1e-3": ("sampling", "guidance_scale", 0.001),
    "sampling.height=512": ("sampling", "height", 512),
    "sampling.height=null": ("sampling", "height", None),
    "sampling.seed=random": ("sampling", "seed", "random"),
    "sampling.seed=007": ("sampling", "seed", 7),
    "parallel.num_gpus=auto": ("parallel", "num_gpus", "auto"),
    "parallel.hsdp=4": ("parallel", "hsdp", 4),
    "parallel.hsdp=all": ("parallel", "hsdp", "all"),
    "launch.pin_memory=false": ("launch", "pin_memory", False),
    "launch.devices=[4, 5]": ("launch", "devices", (4, 5)),
    "output.name=12": ("output", "name", "12"),
    "memory.budget=24GiB": ("memory", "budget", "24GiB"),
    "sampling.extra={x: 1e-1}": ("sampling", "extra", {"x": 0.1}),
    "sampling.extra.x=1e-1": ("sampling", "extra", {"x": 0.1}),
    "sampling.extra.x=no": ("sampling", "extra", {"x": "no"}),
    "model.components.vae=org/vae": ("model", "components", {"vae": ComponentSpec(path="org/vae")}),
}


@pytest.mark.parametrize(("text", "expected"), TYPED.items())
def test_a_set_value_has_the_type_of_its_key(text, expected):
    section, key, value = expected
    recipe = load_recipe({"model": "a/b"}, [parse_set(text)]).recipe
    found = getattr(getattr(recipe, section), key)
    assert (found, type(found)) == (value, type(value))


def test_sections_and_short_forms_can_be_set_whole():
    overrides = [parse_set(text) for text in ("cache=dbcache", "parallel={tp: 2}", "stages.denoising.attention=fa",
                                              "stages.decoding.tiling=true")]
    recipe = load_recipe({"model": "a/b"}, overrides).recipe
    assert (recipe.cache.backend, recipe.parallel.tp) == ("dbcache", 2)
    assert (recipe.stages.denoising.attention.name, recipe.stages.decoding.tiling.name) == ("fa", "on")


def test_a_component_set_as_one_text_has_nothing_of_the_one_before(folder):
    folder({"r.yaml": "model: {path: a/b, components: {vae: {path: org/vae, revision: v1}}}\n"})

    def vae(*texts):
        return load_recipe("r.yaml", [parse_set(text) for text in texts]).recipe.model.components["vae"]

    assert vae("model.components.vae=org/other") == ComponentSpec(path="org/other")
    assert vae("model.components.vae.revision=v2") == ComponentSpec(path="org/vae", revision="v2")


def test_overrides_win_over_the_file_merge_into_its_mappings_and_the_last_one_wins(folder):
    folder({"r.yaml": "model: {path: a/b, revision: r1}\nsampling: {seed: 1, height: 64, extra: {a: 1}}\n"})
    texts = ("sampling.seed=2", "sampling.seed=3", "sampling={width: 32}", "sampling.extra.b=2", "model.path=c/d")
    loaded = load_recipe("r.yaml", [parse_set(text) for text in texts])
    sampling = loaded.recipe.sampling
    assert (sampling.seed, sampling.height, sampling.width, sampling.extra) == (3, 64, 32, {"a": 1, "b": 2})
    assert (loaded.recipe.model.path, loaded.recipe.model.revision) == ("c/d", "r1")
    assert loaded.provenance["sampling.seed"] == "--set sampling.seed=3"
    assert loaded.where("sampling") == "r.yaml:2:11"


BAD_SETS = {
    "sampling.height=big": "--set sampling.height=big: error: sampling.height: 'big' is not a whole number",
    "sampling.height=1.5": "--set sampling.height=1.5: error: sampling.height: 1.5 is not a whole number",
    "sampling.hieght=1": "--set sampling.hieght=1: error: sampling.hieght: unknown recipe key, did you mean "
                         "'sampling.height'?",
    "num_gpus=8": "--set num_gpus=8: error: num_gpus: unknown recipe key, did you mean 'parallel.num_gpus'?",
    "sp_size=8": "--set sp_size=8: error: sp_size: unknown recipe key, did you mean 'parallel.sp'?",
    "qqq=8": "--set qqq=8: error: qqq: unknown recipe key",
    "=8": "--set =8: error: : unknown recipe key",
    "sampling.seed": "--set sampling.seed: error: write key=value, for example sampling.seed=7",
    "sampling.seed.x=1": "--set sampling.seed.x=1: error: sampling.seed.x: unknown recipe key, did you mean "
                         "'sampling.seed'?",
    "model.lora.0.strength=2": "--set model.lora.0.strength=2: error: model.lora.0.strength: model.lora is a list; "
                               "give it whole, as in [a, b]",
    "parallel={tpp: 2}": "--set parallel={tpp: 2}: error: parallel.tpp: unknown field, did you mean 'tp'?",
    "stages.denoising.compile=off": "--set stages.denoising.compile=off: error: stages.denoising.compile: 'off' is not "
                                    "one of auto, none, regional, full; did you mean 'none'?",
    "output.dir=": "--set output.dir=: error: output.dir: an empty text",
    "model=null": "argument: error: model: missing; every recipe names its model, for example model: "
                  "builtin:shapes-image",
}


@pytest.mark.parametrize(("text", "expected"), BAD_SETS.items())
def test_a_wrong_set_is_answered_with_what_was_typed(text, expected):
    with pytest.raises(RecipeError) as caught:
        load_recipe({"model": "a/b"}, [parse_set(text)])
    assert str(caught.value) == expected


def test_overrides_from_python_are_typed_already_and_checked_alike():
    recipe = load_recipe({"model": "a/b"}, [Override("sampling.prompt", "[a, b]", "prompt")]).recipe
    assert recipe.sampling.prompt == "[a, b]"
    assert message({"model": "a/b"}, [Override("sampling.seeed", 1, "overrides")]) == (
        "overrides: error: sampling.seeed: unknown recipe key, did you mean 'sampling.seed'?"
    )


def test_problems_of_overrides_come_after_those_of_the_file(folder):
    folder({"r.yaml": "model: a/b\nsampling: {height: big}\n"})
    lines = message("r.yaml", [parse_set("parallel.tp=two"), parse_set("sampling.width=wide")]).split("\n")
    assert [line.partition(": error")[0] for line in lines] == [
        "r.yaml:2:20", "--set parallel.tp=two", "--set sampling.width=wide",
    ]


# mappings and paths


def test_a_mapping_loads_without_a_file():
    loaded = load_recipe({"model": "a/b", "sampling": {"prompt": "x"}})
    assert (loaded.base, loaded.name, loaded.where("model.path")) == (None, "", "argument")


def test_a_mapping_that_holds_no_data_is_refused():
    cyclic = {"model": "a/b"}
    cyclic["sampling"] = cyclic
    assert message(cyclic) == "argument: error: nested deeper than 32 levels"
    assert message({"model": "a/b", 3: 4}) == "argument: error: the key 3 is not a text"
    assert message({"model": "a/b", "sampling": {"extra": {"x": object}}}) == (
        "argument: error: sampling.extra: type is not plain data: text, number, true, false, null, list or mapping"
    )


PATHS = """
model:
  path: ./weights
  components: {vae: ../vae, text_encoder: org/encoder}
  lora: [adapters/mine, org/theirs, ./x.safetensors]
  code: family
sampling:
  image: [cat.png, https://example.org/dog.png]
  mask: /masks/m.png
  prompts: {file: prompts.txt}
stages: {denoising: {attention: {name: sliding_tile_attn, mask_strategy_file_path: mask.json}}}
output: {dir: out}
serve: {lora_dir: loras}
"""


def test_relative_paths_in_a_file_are_relative_to_that_file(folder):
    root = folder({"deep/r.yaml": PATHS, "deep/adapters/mine/x": ""})
    recipe = load_recipe("deep/r.yaml").recipe
    deep = str(root / "deep")
    assert recipe.model.path == f"{deep}/weights"
    places = {name: part.path for name, part in recipe.model.components.items()}
    assert places == {"vae": str(root / "vae"), "text_encoder": "org/encoder"}
    assert [lora.path for lora in recipe.model.lora] == [f"{deep}/adapters/mine", "org/theirs", f"{deep}/x.safetensors"]
    assert recipe.sampling.image == (f"{deep}/cat.png", "https://example.org/dog.png")
    assert (recipe.sampling.mask, recipe.sampling.prompts.file) == ("/masks/m.png", f"{deep}/prompts.txt")
    assert recipe.stages.denoising.attention.mask_strategy_file_path == f"{deep}/mask.json"
    assert (recipe.model.code, recipe.output.dir, recipe.serve.lora_dir) == (f"{deep}/family", "out", f"{deep}/loras")


def test_inherited_paths_stay_relative_to_the_parent_and_overrides_are_relative_to_the_current_folder(folder):
    root = folder({
        "deep/base.yaml": "model: ./weights\nsampling: {mask: m.png}\n",
        "r.yaml": "extends: deep/base.yaml\nsampling: {image: i.png}\n",
    })
    recipe = load_recipe("r.yaml", [parse_set("sampling.last_image=l.png")]).recipe
    assert recipe.model.path == str(root / "deep" / "weights")
    assert recipe.sampling.mask == str(root / "deep" / "m.png")
    assert recipe.sampling.image == str(root / "i.png")
    assert recipe.sampling.last_image == str(root / "l.png")


def test_hub_ids_and_built_in_models_are_no_paths_and_home_is_expanded(folder, monkeypatch):
    root = folder({"org/model/model_index.json": "{}", "r.yaml": "model: builtin:shapes-image\n"})
    monkeypatch.setenv("HOME", str(root))
    assert load_recipe("r.yaml").recipe.model.path == "builtin:shapes-image"
    assert load_recipe({"model": "org/other"}).recipe.model.path == "org/other"
    assert load_recipe({"model": "org/model"}).recipe.model.path == str(root / "org" / "model")
    assert load_recipe({"model": "~/x"}).recipe.model.path == str(root / "x")


# what RECIPE may be


def test_an_existing_path_wins_over_a_model_of_the_same_name(folder):
    folder({"org/model": "model: a/b\n"})
    assert lookup.resolve_source("org/model") == Path("org/model")
    assert lookup.resolve_source("org/other") == {"model": "org/other"}


def test_a_checkpoint_folder_a_weights_file_and_a_built_in_model_are_models(folder):
    root = folder({"ckpt/model_index.json": "{}", "one.safetensors": ""})
    assert lookup.resolve_source("ckpt") == {"model": str(root / "ckpt")}
    assert lookup.resolve_source("one.safetensors") == {"model": str(root / "one.safetensors")}
    assert lookup.resolve_source("builtin:shapes-image") == {"model": "builtin:shapes-image"}


def test_a_built_in_recipe_is_found_by_name_and_every_one_loads():
    for name, path in lookup.builtin_recipes().items():
        assert lookup.resolve_source(name) == path
        assert load_recipe(name).name == f"builtin/{name}.yaml"


def test_a_mistyped_name_gets_the_nearest_ones_and_only_what_is_no_file_where_a_prompt_goes(folder):
    folder({"wan.yaml": "model: a/b\n", "cfg/flux.yaml": "model: a/b\n", "empty/readme": ""})
    cases = {
        "wan.yml": (
            "no such file: 'wan.yml'",
            "did you mean wan.yaml?",
        ),
        "cfg/flx.yaml": (
            "no such file: 'cfg/flx.yaml'",
            f"did you mean cfg{os.sep}flux.yaml?",
        ),
        "a red circle": ("'a red circle' is no recipe, file or model", "a prompt goes in -p"),
        "a red and/or blue ring": ("'a red and/or blue ring' is no recipe, file or model", "a prompt goes in -p"),
        "my red circle.png": ("no such file: 'my red circle.png'", SHIPPED),
        "cfg/red.png": ("no such file: 'cfg/red.png'", SHIPPED),
        "cfg/wan/one": ("no such file or folder: 'cfg/wan/one'", SHIPPED),
        "ltx-vid": (
            "no file, built-in recipe or model is called 'ltx-vid'",
            "did you mean ltx-video? a prompt goes in -p",
        ),
        "qqqq": ("no file, built-in recipe or model is called 'qqqq'", "a prompt goes in -p"),
        "empty": (
            "empty is a folder without model_index.json: neither a recipe nor a model",
            "give a recipe file, or the folder of a diffusers checkpoint",
        ),
    }
    for text, expected in cases.items():
        with pytest.raises(RecipeError) as caught:
            lookup.resolve_source(text)
        assert (caught.value.message.removeprefix("error: "), caught.value.hint) == expected

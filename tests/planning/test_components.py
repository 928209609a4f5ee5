"""Components from elsewhere: known by name, of the right class, and read where their configs decide something."""

import json

import pytest

from difftool.errors import RecipeError, WeightsError
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe

SHAPES = "builtin:shapes-image"
DEV = "black-forest-labs/FLUX.1-dev"


def plan(components=None, path=SHAPES, **model):
    given = {name: part if isinstance(part, dict) else str(part) for name, part in (components or {}).items()}
    spec = {"path": path, "components": given, **model}
    return make_plan(load_recipe({"model": spec, "sampling": {"prompt": "x"}}), run=RunOptions())


def message(components=None, **model):
    with pytest.raises(RecipeError) as error:
        plan(components, **model)
    (problem,) = error.value.problems
    return problem.message


def component(folder, **config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def vae(tmp_path):
    return component(tmp_path / "other-vae", _class_name="AutoencoderKL", block_out_channels=[8, 8, 8, 8])


def test_the_plan_names_where_each_one_lies(vae, tmp_path):
    weights = tmp_path / "t.safetensors"
    weights.write_bytes(b"")
    made = plan({"vae": vae, "transformer": weights, "text_encoder_2": {"path": "org/encoders/t5", "revision": "v1"}})
    found = made.model.components
    assert (found["vae"].folder, found["vae"].shown) == (str(vae), "other-vae")
    assert (found["transformer"].file, found["transformer"].shown) == (str(weights), "t.safetensors")
    encoder = found["text_encoder_2"]
    assert (encoder.hub_id, encoder.subfolder, encoder.revision) == ("org/encoders", "t5", "v1")
    assert found["text_encoder_2"].shown == "org/encoders/t5"
    embedded = made.item_recipe(made.items[0])["model"]
    assert embedded["components"] == {
        "vae": {"path": "other-vae", "revision": None},
        "transformer": {"path": "t.safetensors", "revision": None},
        "text_encoder_2": {"path": "org/encoders/t5", "revision": "v1"},
    }
    assert str(tmp_path) not in json.dumps(embedded)


def test_a_pipeline_s_folder_stands_for_its_component(tmp_path):
    component(tmp_path / "pipe" / "vae", _class_name="AutoencoderKL", block_out_channels=[8, 8, 8, 8])
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    assert plan({"vae": tmp_path / "pipe"}).model.components["vae"].folder == str(tmp_path / "pipe" / "vae")
    assert plan({"vae": SHAPES}).model.components["vae"].folder.endswith("shapes-image/vae")


def test_its_config_decides_sizes(tmp_path):
    recipe = {
        "model": {"path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "components": {"vae": str(tmp_path / "vae")}},
        "sampling": {"prompt": "x", "height": 48, "width": 48},
    }
    component(tmp_path / "vae", _class_name="AutoencoderKLWan", scale_factor_spatial=16)
    with pytest.raises(RecipeError, match="multiple of 32"):
        make_plan(load_recipe(recipe), run=RunOptions())
    component(tmp_path / "vae", _class_name="AutoencoderKLWan", scale_factor_spatial=8)
    assert make_plan(load_recipe(recipe), run=RunOptions()).items[0].sampling["height"] == 48


def test_the_workload_depends_on_it_and_its_revision(vae):
    parts = (None, {"vae": vae}, *({"text_encoder_2": {"path": "org/t5", "revision": r}} for r in (None, "v1", "v2")))
    assert len({plan(part).workload_sha256 for part in parts}) == len(parts)


def test_a_revision_is_for_a_hub_repository(vae):
    for path in (str(vae), SHAPES):
        assert message({"vae": {"path": path, "revision": "v1"}}) == (
            f"model.components.vae.revision: it is for a hub repository, and {path} is on this disk"
        )


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A hub cache, and a function that puts a file of a repository's revision there as huggingface_hub does."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))

    def put(revision, name, content):
        repository = tmp_path / "cache" / "models--org--vae"
        file = repository / "snapshots" / f"commit-{revision}" / name
        file.parent.mkdir(parents=True)
        file.write_text(content)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(f"commit-{revision}")

    return put


def test_the_config_of_the_fetched_revision_decides_sizes(cache):
    """In a repository of nothing but the component, which has no model_index.json."""

    def height(revision, height):
        part = {"path": "org/vae", **({"revision": revision} if revision else {})}
        model = {"path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "components": {"vae": part}}
        sampling = {"prompt": "x", "height": height, "width": 96}
        made = make_plan(load_recipe({"model": model, "sampling": sampling}), run=RunOptions())
        return made.items[0].sampling["height"]

    for revision, factor in (("main", 8), ("v1", 16)):
        config = {"_class_name": "AutoencoderKLWan", "scale_factor_spatial": factor}
        cache(revision, "config.json", json.dumps(config))
    assert height(None, 48) == 48 and height("commit-v1", 64) == 64
    with pytest.raises(RecipeError, match="multiple of 32"):
        height("v1", 48)
    with pytest.raises(WeightsError, match="org/vae is not on this machine, and its config decides sizes"):
        height("v2", 48)


def test_a_component_that_the_pipeline_has_not_is_answered_with_those_it_has(vae):
    assert message({"unet": vae}).startswith(
        "model.components.unet: FluxPipeline has no such component; it has scheduler, text_encoder"
    )


def test_another_class_is_refused(tmp_path):
    other = component(tmp_path / "wan-vae", _class_name="AutoencoderKLWan")
    assert message({"vae": other}) == (
        f"model.components.vae: {other} is a AutoencoderKLWan, and {SHAPES} takes a AutoencoderKL"
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.safetensors", "there is no file .*missing.safetensors"),
        ("./missing", "there is no folder .*missing"),
        ("x.ckpt", "is a pickle, which can run code when loaded: refused"),
        ("empty", "empty has no config.json"),
        ("org/vae", "org/vae is not on this machine, and its config decides sizes"),
    ],
)
def test_what_is_not_there_is_exit_4(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.ckpt").write_bytes(b"")
    with pytest.raises(WeightsError, match=words) as error:
        plan({"vae": name if "/" in name else tmp_path / name})
    assert error.value.exit_code == 4


def test_pipelines_of_diffusers_keep_their_own(vae):
    assert message({"vae": vae}, backend="diffusers") == (
        "model.components.vae: FluxPipeline runs as diffusers has it, with its own components"
    )


def test_a_single_file_is_the_transformer_of_model_id(tmp_path):
    weights = tmp_path / "flux1-tuned.safetensors"
    weights.write_bytes(b"")
    made = plan(path=str(weights), id=DEV)
    assert (made.model.hub_id, made.model.components["transformer"].file) == (DEV, str(weights))
    assert made.items[0].sampling["num_inference_steps"] == 28
    embedded = made.item_recipe(made.items[0])
    assert embedded["model"]["path"] == "flux1-tuned.safetensors" and str(tmp_path) not in json.dumps(embedded)
    assert message(path=str(weights)).startswith(
        f"model.path: {weights}: one file holds the weights of one transformer: model.id says which model"
    )
    assert "give one of them" in message({"transformer": weights}, path=str(weights), id=DEV)


def test_a_single_file_that_is_missing_or_a_pickle_is_exit_4(tmp_path):
    for name, words in (("x.safetensors", "there is no file"), ("x.ckpt", "is a pickle")):
        with pytest.raises(WeightsError, match=words):
            plan(path=str(tmp_path / name), id=DEV)


def test_nothing_is_fetched_offline_and_by_a_built_in_model(vae):
    def offline(components=None, **launch):
        model = {"path": SHAPES, "components": components or {}}
        recipe = {"model": model, "sampling": {"prompt": "x"}, "launch": launch}
        return make_plan(load_recipe(recipe), run=RunOptions()).offline

    hub = {"text_encoder_2": "org/encoder"}
    assert offline() and not offline(hub) and offline(hub, offline=True)

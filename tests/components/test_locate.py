"""Where weights come from, and what is said when they cannot come."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import save_file
from torch import nn

from difftool.components import locate as module
from difftool.components.accounting import WeightSource
from difftool.components.locate import locate, locate_components, locate_sources
from difftool.components.sources import own_readers
from difftool.errors import WeightsError
from difftool.planning.components import place
from difftool.planning.plan import ComponentPlan, ModelPlan

FLUX = ModelPlan(
    name="org/flux", hub_id="org/flux", folder=None, revision=None, family="flux1", pipeline_class="FluxPipeline",
    builtin=False,
)  # fmt: skip


def answer(kind):
    """The error without the HTTP response that its constructor wants."""
    return kind.__new__(kind)


def test_a_folder_and_a_built_in_model_need_no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "snapshot_download", None)
    assert locate(FLUX.model_copy(update={"folder": str(tmp_path)}), (), lambda: None) == tmp_path
    found = locate(FLUX.model_copy(update={"name": "builtin:recipes", "builtin": True}), (), lambda: None)
    assert found.name == "recipes" and found.is_dir()


def test_only_the_family_s_components_are_fetched_and_never_a_pickle(monkeypatch, tmp_path):
    asked = {}

    def download(hub_id, **options):
        asked.update(options, hub_id=hub_id)
        return str(tmp_path)

    monkeypatch.setattr(module, "snapshot_download", download)
    assert locate(FLUX, ("vae",), lambda: None) == tmp_path
    assert asked["hub_id"] == "org/flux" and asked["revision"] is None
    kinds = ("json", "safetensors", "txt", "model", "jinja")
    assert asked["allow_patterns"] == ["model_index.json", *(f"vae/*.{kind}" for kind in kinds)]


@pytest.mark.parametrize(
    ("revision", "name"), [("v1", "vae"), (None, "decoders/new.safetensors")], ids=["folder", "file"]
)
def test_a_component_of_the_hub_has_a_revision_of_its_own(monkeypatch, tmp_path, revision, name):
    asked = []
    (tmp_path / "decoders").mkdir()
    (tmp_path / "decoders" / "new.safetensors").write_bytes(b"")
    monkeypatch.setattr(module, "snapshot_download", lambda hub_id, **given: asked.append(given) or str(tmp_path))
    model = FLUX.model_copy(
        update={"components": {"vae": place("vae", f"org/vae/{name}", revision)}, "revision": "of the model"}
    )
    found = locate_components(model, Path("/model"), lambda: None)["vae"]
    assert {given["revision"] for given in asked} == {revision}
    if name.endswith(".safetensors"):
        assert (found.folder, found.file) == (Path("/model/vae"), tmp_path / name)
        assert asked[0]["allow_patterns"] == [name]
        assert module.needed_files(model, ("vae",)) == ["model_index.json", "vae/config.json"]
    else:
        assert (found.folder, found.file) == (tmp_path / name, None)


def test_a_revision_that_a_component_has_not_is_told_with_its_key(monkeypatch):
    def download(*args, **options):
        raise answer(RevisionNotFoundError)

    monkeypatch.setattr(module, "snapshot_download", download)
    model = with_components(vae=place("vae", "org/vae", "v9"))
    with pytest.raises(WeightsError, match="org/vae has no revision v9") as caught:
        locate_components(model, Path("/model"), lambda: None)
    assert caught.value.hint == "check its revision in model.components"


SOURCES = (
    WeightSource("transformer", repo="org/weights", revision="v2", folder="original", patterns=("a*.safetensors",)),
    WeightSource("vae", repo="org/decoder"),
    WeightSource("text_encoder", folder="encoders"),
    WeightSource("scheduler"),
    WeightSource("elsewhere", folder="/data/weights"),
)


def test_a_weight_source_is_a_folder_of_its_repository_and_revision(monkeypatch, tmp_path):
    asked = []

    def download(hub_id, **given):
        asked.append((hub_id, given["revision"], given["allow_patterns"], given["ignore_patterns"]))
        return str(tmp_path / hub_id)

    monkeypatch.setattr(module, "snapshot_download", download)
    found = locate_sources(SOURCES, lambda: None)
    assert [source.folder for source in found] == [
        str(tmp_path / "org/weights/original"), str(tmp_path / "org/decoder"), "encoders", None, "/data/weights"
    ]  # fmt: skip
    assert all(source.repo is None for source in found) and found[0].patterns == SOURCES[0].patterns
    assert asked == [
        ("org/weights", "v2", ["original/a*.safetensors"], ["original/*/*"]),
        ("org/decoder", None, ["*.safetensors"], ["*/*"]),
    ]


def test_weight_sources_inside_the_checkpoint_are_fetched_with_it(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(module, "snapshot_download", lambda hub_id, **given: asked.update(given) or str(tmp_path))
    locate(FLUX, (), lambda: None, sources=SOURCES)
    assert asked["allow_patterns"] == ["model_index.json", "encoders/*.safetensors", "scheduler/*.safetensors"]


def test_a_weight_source_in_the_hub_s_cache_is_read_offline_and_another_revision_is_not(monkeypatch, tmp_path):
    """By huggingface_hub itself, in its own layout."""
    commit, repository = "0123456789" * 4, tmp_path / "models--org--weights"
    snapshot = repository / "snapshots" / commit / "original"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "v2").write_text(commit)
    weight = torch.randn(2, 3)
    save_file({"weight": weight, "bias": torch.zeros(2)}, repository / "blobs" / "abc")
    (snapshot / "all.safetensors").symlink_to("../../../blobs/abc")
    monkeypatch.setattr(module.constants, "HF_HUB_CACHE", str(tmp_path))
    source = WeightSource("net", repo="org/weights", revision="v2", folder="original")
    found = locate_sources([source], lambda: None)
    made = own_readers({"net": Net}, found, tmp_path / "model", dtypes={}, device=torch.device("cpu"))["net"]()
    assert torch.equal(made.weight, weight)
    with pytest.raises(WeightsError, match="org/weights is not on this machine, and nothing is fetched") as caught:
        locate_sources([replace(source, revision="v3")], lambda: None)
    assert caught.value.hint == "with a connection: difftool models fetch RECIPE"


class Net(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)


def test_arriving_bytes_are_reported_so_that_a_long_download_is_no_stall(monkeypatch, tmp_path, capfd):
    def download(hub_id, *, tqdm_class, **options):
        with tqdm_class(total=3, desc="fetches") as bar:
            bar.update(1)
            bar.update(2)
        return str(tmp_path)

    beats = []
    monkeypatch.setattr(module, "snapshot_download", download)
    locate(FLUX, (), lambda: beats.append(1))
    assert len(beats) == 2 and capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (answer(GatedRepoError), "org/flux is gated", "org/flux, then run: hf auth login"),
        (answer(RepositoryNotFoundError), "the hub has no model org/flux, or it is private", "check the spelling"),
        (LocalEntryNotFoundError("x"), "org/flux is not on this machine and the hub", "give its folder"),
        (ConnectionError("x"), "the hub cannot be reached .ConnectionError.", "give its folder"),
    ],
)
def test_every_refusal_of_the_hub_says_what_to_do(monkeypatch, error, message, hint):
    def download(*args, **options):
        raise error

    monkeypatch.setattr(module.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module, "snapshot_download", download)
    with pytest.raises(WeightsError, match=message) as caught:
        locate(FLUX, (), lambda: None)
    assert hint in caught.value.hint and caught.value.exit_code == 4


def test_offline_says_how_to_fetch(monkeypatch):
    def download(*args, **options):
        raise LocalEntryNotFoundError("x")

    monkeypatch.setattr(module.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(module, "snapshot_download", download)
    with pytest.raises(WeightsError, match="is not on this machine, and nothing is fetched offline") as caught:
        locate(FLUX, (), lambda: None)
    assert caught.value.hint == "with a connection: difftool models fetch org/flux"


def with_components(**components):
    return FLUX.model_copy(update={"components": components})


def test_weights_that_come_from_elsewhere_are_not_fetched_with_the_model(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(module, "snapshot_download", lambda hub_id, **given: asked.append(given) or str(tmp_path))
    model = with_components(
        vae=ComponentPlan(name="v", folder="/v"), transformer=ComponentPlan(name="t", file="/t.safetensors")
    )
    locate(model, ("transformer", "vae"), lambda: None)
    assert asked[0]["allow_patterns"] == ["model_index.json", "transformer/config.json"]
    places = locate_components(model, tmp_path, lambda: None)
    assert (places["vae"].folder, places["vae"].file) == (Path("/v"), None)
    assert (places["transformer"].folder, places["transformer"].file) == (
        tmp_path / "transformer",
        Path("/t.safetensors"),
    )


@pytest.mark.parametrize(
    ("inside", "subfolder", "found", "pattern"),
    [
        ("config.json", None, ".", "*.safetensors"),
        ("model_index.json", None, "vae", "vae/*.safetensors"),
        ("model_index.json", "decoders/small", "decoders/small", "decoders/small/*.safetensors"),
    ],
)
def test_a_component_of_the_hub_is_a_repository_or_a_folder_of_one(
    monkeypatch, tmp_path, inside, subfolder, found, pattern
):
    asked = []
    (tmp_path / inside).write_text("{}")
    monkeypatch.setattr(module, "snapshot_download", lambda hub_id, **given: asked.append(given) or str(tmp_path))
    model = with_components(vae=ComponentPlan(name="org/vae", hub_id="org/vae", subfolder=subfolder))
    assert locate_components(model, Path("/model"), lambda: None)["vae"].folder == tmp_path / found
    assert pattern in asked[-1]["allow_patterns"]

"""Where weights come from, and what is said when they cannot come."""

import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from difftool.components import locate as module
from difftool.components.locate import locate
from difftool.errors import WeightsError
from difftool.planning.plan import ModelPlan

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
    kinds = ("json", "safetensors", "txt", "model")
    assert asked["allow_patterns"] == ["model_index.json", *(f"vae/*.{kind}" for kind in kinds)]


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

    monkeypatch.setattr(module, "snapshot_download", download)
    with pytest.raises(WeightsError, match=message) as caught:
        locate(FLUX, (), lambda: None)
    assert hint in caught.value.hint and caught.value.exit_code == 4

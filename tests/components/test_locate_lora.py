"""Where a LoRA on the hub comes from, with stand-ins for the hub."""

import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from difftool.components import locate as module
from difftool.components.locate import locate_lora
from difftool.errors import RecipeError, WeightsError
from difftool.planning.plan import LoraPlan


def lora(**values):
    common = {"nickname": "x", "name": "org/x", "target": "all", "strength": 1.0, "min_match": 0.95}
    return LoraPlan(**{**common, "hub_id": "org/x", **values})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one repository: what is in it and what was asked of it. `down` makes it unreachable."""
    asked = {"files": ["README.md", "style.safetensors"], "down": False}

    def listed(hub_id, *, revision):
        if asked["down"]:
            raise ConnectionError
        return asked["files"]

    def download(hub_id, *, revision, allow_patterns=None, local_files_only=False, **others):
        asked.update(revision=revision, patterns=allow_patterns)
        for name in asked["files"]:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr(module, "list_repo_files", listed)
    monkeypatch.setattr(module, "snapshot_download", download)
    return asked


def test_a_local_file_needs_no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "snapshot_download", None)
    assert locate_lora(lora(hub_id=None, file=str(tmp_path / "a")), lambda: None) == tmp_path / "a"


def test_the_one_file_of_a_repository_is_fetched_with_the_config_beside_it(hub, tmp_path):
    assert locate_lora(lora(), lambda: None) == tmp_path / "style.safetensors"
    assert hub["patterns"] == ["style.safetensors", "adapter_config.json"]
    hub["files"] = ["sub/a.safetensors"]
    assert locate_lora(lora(weight_name="sub/a.safetensors", revision="c1"), lambda: None).name == "a.safetensors"
    assert hub["patterns"] == ["sub/a.safetensors", "sub/adapter_config.json"] and hub["revision"] == "c1"


def test_what_was_fetched_is_found_without_a_connection(hub, tmp_path):
    hub["down"] = True
    assert locate_lora(lora(), lambda: None) == tmp_path / "style.safetensors"


def test_several_files_are_refused_with_the_list(hub):
    hub["files"] = ["b.safetensors", "a.safetensors"]
    with pytest.raises(RecipeError) as caught:
        locate_lora(lora(), lambda: None)
    listed = "org/x holds 2 LoRAs; name one of them in weight_name: a.safetensors, b.safetensors"
    assert str(caught.value) == f"error: {listed}"


def test_a_repository_without_a_lora_or_without_this_file_is_refused(hub):
    hub["files"] = ["a.bin"]
    with pytest.raises(WeightsError, match="org/x holds no .safetensors file"):
        locate_lora(lora(), lambda: None)
    with pytest.raises(WeightsError, match="org/x has no style.safetensors"):
        locate_lora(lora(weight_name="style.safetensors"), lambda: None)


def test_a_repository_that_is_not_there_is_called_a_lora(monkeypatch):
    def missing(*args, **options):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(module, "list_repo_files", missing)
    with pytest.raises(WeightsError, match="the hub has no LoRA org/x, or it is private"):
        locate_lora(lora(), lambda: None)

"""Checkpoints are judged by their headers, shapes and numbers, before anything is allocated; no code of theirs runs."""

import json
import shutil
import time

import pytest
import torch
from components.damaged import CANARY, DAMAGES, PROMISED, build, change_json, index, shards, vae
from components.damaged_loras import LAYERS, LORA_DAMAGES, sound_lora
from safetensors.torch import load_file, save_file

from difftool.components.check import check_component, check_folder, read_index
from difftool.components.load import load_components
from difftool.components.lora import Active, LoraSet
from difftool.components.lora_file import outline_lora
from difftool.errors import WeightsError
from difftool.pipeline.examine import examine

NAMES = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return build(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def checkpoint(sound, tmp_path):
    """A copy to damage."""
    return shutil.copytree(sound, tmp_path / "model")


def load(folder):
    dtypes = dict.fromkeys(("transformer", "vae", "text_encoder", "text_encoder_2"), torch.float32)
    return load_components(
        NAMES,
        read_index(folder)["_class_name"],
        folder,
        optional=(),
        tokenizers=(),
        dtypes=dtypes,
        device=torch.device("cpu"),
        loaded=lambda **values: None,
    )


def test_every_damage_that_is_promised_is_here_and_more():
    names = [damage.name for damage in (*DAMAGES, *LORA_DAMAGES)]
    assert len(set(names)) == len(names) and set(PROMISED) < set(names) and len(set(PROMISED)) == 34


def test_a_sound_checkpoint_passes(sound):
    answers = list(examine(sound, NAMES))
    assert {answer["name"] for answer in answers} == set(NAMES) and not any("fault" in answer for answer in answers)
    assert next(answer for answer in answers if answer["name"] == "transformer")["files"] == len(shards(sound)) > 3
    assert len(list(load(sound).transformer.parameters())) > 10


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_a_damaged_checkpoint_is_refused_at_once_and_by_name(damage, checkpoint):
    damage.make(checkpoint)
    started = time.process_time()
    with pytest.raises(WeightsError, match=damage.words) as error:
        load(checkpoint)
    assert time.process_time() - started < 5
    assert damage.file in error.value.message and error.value.exit_code == 4
    assert not (checkpoint / CANARY).exists()


@pytest.mark.parametrize("damage", [d for d in DAMAGES if d.file != "model_index.json"], ids=lambda damage: damage.name)
def test_examining_it_says_the_same_and_goes_on_to_the_rest(damage, checkpoint):
    damage.make(checkpoint)
    answers = list(examine(checkpoint, NAMES))
    (fault,) = [answer["fault"] for answer in answers if "fault" in answer]
    assert damage.file in fault
    assert len(answers) == len(NAMES) and not (checkpoint / CANARY).exists()


@pytest.fixture(scope="module")
def transformer(sound):
    return load(sound).transformer


@pytest.mark.parametrize("damage", LORA_DAMAGES, ids=lambda damage: damage.name)
def test_a_damaged_lora_is_refused_at_once_and_by_name_and_changes_nothing(damage, sound, transformer, tmp_path):
    path = tmp_path / "style.safetensors"
    damage.make(path, sound_lora(sound))
    before = {name: weight.clone() for name, weight in transformer.state_dict().items()}
    started = time.process_time()
    with pytest.raises(WeightsError, match=damage.words) as error:
        merge(transformer, path)
    assert time.process_time() - started < 5
    assert path.name in error.value.message and error.value.exit_code == 4 and error.value.hint
    assert all(torch.equal(weight, before[name]) for name, weight in transformer.state_dict().items())
    assert not (tmp_path / CANARY).exists()


def test_a_sound_lora_changes_its_layers_and_no_other(sound, transformer, tmp_path):
    save_file(sound_lora(sound), tmp_path / "style.safetensors")
    before = {name: weight.clone() for name, weight in transformer.state_dict().items()}
    loras = merge(transformer, tmp_path / "style.safetensors")
    changed = {name for name, weight in transformer.state_dict().items() if not torch.equal(weight, before[name])}
    loras.unmerge()
    assert changed == {f"{layer}.weight" for layer in LAYERS}


def merge(transformer, path):
    """As a run does: by headers before the model is loaded, then by what is in it."""
    outline_lora(path)
    loras = LoraSet({"transformer": transformer}, denoisers=("transformer",), original={})
    loras.load("style", path)
    loras.set([Active("style")])
    return loras


def test_two_faults_are_both_told(checkpoint):
    vae(checkpoint).write_bytes(b"")
    shards(checkpoint)[0].unlink()
    answers = {answer["name"]: answer.get("fault", "") for answer in examine(checkpoint, NAMES)}
    assert "truncated" in answers["vae"] and "are missing" in answers["transformer"]


def test_nothing_is_made_before_every_component_is_checked(checkpoint, monkeypatch):
    from difftool.components import read

    monkeypatch.setattr(read, "read_tensors", lambda *arguments: pytest.fail("it read weights"))
    change_json(checkpoint / "vae" / "config.json", lambda config: config.update(latent_channels=8))
    with pytest.raises(WeightsError, match="does not fit its config.json"):
        load(checkpoint)


def test_a_component_of_another_precision_beside_it_is_left_alone(checkpoint):
    before = shards(checkpoint)
    for name in ("diffusion_pytorch_model.fp16.safetensors", "other-00001-of-00002.safetensors"):
        (checkpoint / "transformer" / name).write_bytes(b"broken")
    assert sorted(check_component(checkpoint / "transformer").files) == before


def test_links_inside_the_folder_and_into_the_hub_cache_are_followed(checkpoint, tmp_path):
    inside = checkpoint / "vae" / "weights"
    vae(checkpoint).rename(inside)
    vae(checkpoint).symlink_to(inside.name)
    check_folder(checkpoint, ["vae"])
    blob = tmp_path / "models--org--name" / "blobs" / "abc"
    blob.parent.mkdir(parents=True)
    inside.rename(blob)
    vae(checkpoint).unlink()
    vae(checkpoint).symlink_to(blob)
    check_folder(checkpoint, ["vae"])


def test_a_component_folder_that_is_a_link_out_is_refused(checkpoint, tmp_path):
    (checkpoint / "vae").rename(tmp_path / "elsewhere")
    (checkpoint / "vae").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match="is a link that leaves") as error:
        check_folder(checkpoint, ["vae"])
    assert "model.components" in error.value.hint


def test_names_of_old_attention_blocks_are_known(checkpoint):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    found = load_file(vae(checkpoint))
    for name in [name for name in found if ".mid_block.attentions." in name]:
        for new, before in old.items():
            if f".{new}." in name:
                found[name.replace(f".{new}.", f".{before}.")] = found.pop(name)
    assert any(".proj_attn." in name for name in found)
    save_file(found, vae(checkpoint), metadata={"format": "pt"})
    assert not any("fault" in answer for answer in examine(checkpoint, NAMES))
    loaded = load(checkpoint).vae.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in loaded.items() if name in found)


def test_tensors_that_an_encoder_does_not_take_are_no_fault(checkpoint):
    """A repository often holds the whole model of which a pipeline takes the encoder."""
    path = checkpoint / "text_encoder" / "model.safetensors"
    save_file({**load_file(path), "lm_head.weight": torch.zeros(4, 4)}, path, metadata={"format": "pt"})
    assert not any("fault" in answer for answer in examine(checkpoint, NAMES))


def test_infinity_is_found_as_it_lies_on_the_device(checkpoint):
    path = shards(checkpoint)[2]
    found = load_file(path)
    name = next(iter(found))
    found[name].view(-1)[0] = torch.inf
    save_file(found, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=f"{path.name} holds NaN or infinity in {name}"):
        load(checkpoint)


def test_a_quantized_model_is_refused_by_name(checkpoint):
    quantized = {"quantization_config": {"quant_method": "bitsandbytes"}}
    change_json(checkpoint / "transformer" / "config.json", lambda config: config.update(quantized))
    with pytest.raises(WeightsError, match="transformer is quantized"):
        load(checkpoint)


def test_a_component_that_is_not_listed_is_named(checkpoint):
    with pytest.raises(WeightsError, match="lists no image_encoder, which"):
        check_folder(checkpoint, ["image_encoder"])


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "has no model_index.json"), ("{", "cannot be read"), ("[]", "does not hold a mapping"), ("{}", "names no")],
)
def test_a_bad_index_is_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(WeightsError, match=words):
        read_index(tmp_path)


def test_what_a_folder_holds_instead_is_named(checkpoint):
    vae(checkpoint).rename(checkpoint / "vae" / "x.safetensors")
    with pytest.raises(WeightsError, match=r"weights are missing: .*; there is x.safetensors"):
        check_folder(checkpoint, ["vae"])
    assert json.loads(index(checkpoint).read_text())["weight_map"]

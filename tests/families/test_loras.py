"""LoRAs in every family: each of its layers can be changed, and all of them come back bit for bit."""

import pytest
import torch
from families.cases import CASES
from families.running import assemble_case
from safetensors.torch import save_file
from torch import nn

from difftool.acceleration.loras import open_set
from difftool.components.lora import Active, LoraSet
from difftool.components.lora_keys import original_names

NAMES = [case.name for case in CASES]
FAMILIES = sorted({case.family for case in CASES})


def pairs(module):
    """A LoRA for every linear layer of a module, in the keys that diffusers writes."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            down, up = (2, layer.in_features), (layer.out_features, 2)
            made[f"transformer.{name}.lora_A.weight"] = torch.randn(down, generator=generator)
            made[f"transformer.{name}.lora_B.weight"] = torch.randn(up, generator=generator)
    return made


def copies(module):
    return {name: parameter.clone() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_changed_and_comes_back_bit_for_bit(name, dtype, tmp_path):
    assembled = assemble_case(name)
    loras = open_set(assembled.components, assembled.config.roles, assembled.config.layer_names)
    transformer = assembled.components.transformer
    original = copies(transformer)
    rounded = {key: value.to(dtype) for key, value in original.items()}
    try:
        transformer.to(dtype)
        save_file(pairs(transformer), tmp_path / "every.safetensors")
        loras.load("every", tmp_path / "every.safetensors", min_match=1.0)
        loras.set([Active("every", 0.5, "transformer")])
        merged = copies(transformer)
        linear = {f"{key}.weight" for key, layer in transformer.named_modules() if isinstance(layer, nn.Linear)}
        assert {key for key in merged if not torch.equal(merged[key], rounded[key])} == linear
        loras.unmerge()
        after = copies(transformer)
        assert all(torch.equal(after[key], rounded[key]) for key in rounded)
    finally:
        transformer.to(torch.float32).load_state_dict({**transformer.state_dict(), **original})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_of_the_original_code_leads_to_a_layer_of_some_checkpoint(family):
    names = [case.name for case in CASES if case.family == family]
    found, wanted = set(), set()
    for name in names:
        assembled = assemble_case(name)
        layers = {key for key, layer in assembled.components.transformer.named_modules() if hasattr(layer, "weight")}
        wanted = set(assembled.config.layer_names)
        found |= {key for key in wanted if key.format(0) in original_names(layers, assembled.config.layer_names)}
    assert found == wanted


def test_a_text_encoder_gets_what_a_file_has_for_it(tmp_path):
    """Under the names of transformers before 5, which all published files have."""
    assembled = assemble_case("flux1-dev")
    layer = assembled.components.text_encoder.encoder.layers[0].mlp.fc1
    before = layer.weight.clone()
    down, up = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
    name = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "text.safetensors")
    modules = {key: getattr(assembled.components, key) for key in ("transformer", "text_encoder", "text_encoder_2")}
    loras = LoraSet(modules, denoisers=("transformer",), original=assembled.config.layer_names)
    loras.load("text", tmp_path / "text.safetensors")
    loras.set([Active("text")])
    torch.testing.assert_close(layer.weight.detach(), before + up @ down / 2, atol=1e-6, rtol=0)
    assert loras.describe()[0]["modules"] == {"text_encoder": {"layers": 1, "keys": 2, "of": 2}}
    loras.unmerge()
    assert torch.equal(layer.weight, before)


# one with layers that are several in one, by columns and by rows, one with norms across heads, one of unlike halves
@pytest.mark.parametrize(
    "name", [pytest.param("flux1-dev", marks=pytest.mark.slow), "flux2-dev", "wan21-t2v", "zimage"]
)
def test_a_rank_that_has_a_part_of_a_denoiser_has_that_part_of_the_merged_one(ranks, saved, name, tmp_path):
    transformer = assemble_case(name).components.transformer
    layers = sum(isinstance(layer, nn.Linear) for layer in transformer.modules())
    save_file(pairs(transformer), tmp_path / "every.safetensors")
    lora = str(tmp_path / "every.safetensors")
    for answer in ranks.run("families.tensors:merge", world=2, case=name, folder=str(saved(name)), lora=lora):
        assert answer == {"other": [], "changed": layers, "left": [], "same": True}

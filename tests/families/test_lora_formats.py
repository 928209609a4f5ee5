"""LoRA files as published ones are keyed: each key finds its layer, and the merged weights are those that diffusers'
own conversion of the same file leads to.
"""

import json
from pathlib import Path

import pytest
import torch
from families.running import assemble_case
from safetensors.torch import save_file

from difftool.components.lora import Active, LoraSet
from difftool.components.lora_keys import original_names, own_names
from difftool.errors import WeightsError

PUBLISHED = json.loads((Path(__file__).parent / "published_loras.json").read_text())
RANK, ALPHA, STRENGTH = 3, 1.5, 0.7


def lora_set(case):
    assembled = assemble_case(case)
    names = assembled.config.roles["denoising"]
    modules = {name: module for name in names if (module := getattr(assembled.components, name)) is not None}
    return LoraSet(modules, denoisers=names, original=assembled.config.layer_names), assembled


def shapes(assembled, name):
    """Rows and columns of the layer, or layers in one, that a published name stands for."""
    layers = {n: m for n, m in assembled.components.transformer.named_modules() if hasattr(m, "weight")}
    places = {**own_names(layers), **original_names(layers, assembled.config.layer_names)}[name]
    weights = [layers[place.layer].weight for place in places]
    return sum(len(w) // p.count for w, p in zip(weights, places, strict=True)), weights[0][0].numel()


def tensors_of(published, assembled):
    generator = torch.Generator().manual_seed(3)
    made = {}
    for name in published["layers"]:
        rows, columns = shapes(assembled, name)
        sizes = {"A": (RANK, columns), "down": (RANK, columns), "B": (rows, RANK), "up": (rows, RANK), "b": (rows,)}
        for suffix in published["suffixes"]:
            kind = suffix.split(".")[1].rpartition("_")[2]
            tensor = torch.tensor(ALPHA) if kind == "alpha" else 0.2 * torch.randn(sizes[kind], generator=generator)
            made[published["prefix"] + name + suffix] = tensor
    return made


def copies(module):
    return {name: parameter.clone() for name, parameter in module.named_parameters()}


def expected(assembled, tensors):
    """The weights that follow from diffusers' conversion, by parameter: alpha is in its B A already."""
    converted = type(assembled.stock).lora_state_dict({name: tensor.clone() for name, tensor in tensors.items()})
    converted = {name.removeprefix("transformer."): tensor for name, tensor in converted.items()}
    layers = {name.partition(".lora_")[0] for name in converted}
    base, found = copies(assembled.components.transformer), {}
    for layer in layers:
        delta = converted[f"{layer}.lora_B.weight"] @ converted[f"{layer}.lora_A.weight"]
        found[f"{layer}.weight"] = base[f"{layer}.weight"] + STRENGTH * delta
        if f"{layer}.lora_B.bias" in converted:
            found[f"{layer}.bias"] = base[f"{layer}.bias"] + STRENGTH * converted[f"{layer}.lora_B.bias"]
    return found


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published["lora"])
def test_every_key_of_a_published_lora_finds_its_layer(published, tmp_path):
    loras, assembled = lora_set(published["case"])
    tensors = tensors_of(published, assembled)
    save_file(tensors, tmp_path / "published.safetensors")
    base = copies(assembled.components.transformer)
    loras.load("it", tmp_path / "published.safetensors", min_match=1.0)
    loras.set([Active("it", STRENGTH, "transformer")])
    merged = copies(assembled.components.transformer)
    (record,) = loras.describe()
    loras.unmerge()
    keys = record["modules"]["transformer"]
    assert keys["keys"] == keys["of"] == sum(not key.endswith(".alpha") for key in tensors) - record["repeated"]
    assert record["repeated"] == published.get("repeated", 0) and record["missing"] == []
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    if "reference" in published:
        assert changed
        return
    wanted = expected(assembled, tensors)
    assert changed == set(wanted)
    for name, weight in wanted.items():
        torch.testing.assert_close(merged[name], weight, atol=1e-6, rtol=0, msg=name)


def test_a_fused_layer_is_dealt_to_its_parts_in_order(tmp_path):
    loras, assembled = lora_set("flux1-dev")
    transformer = assembled.components.transformer
    parts = [
        f"single_transformer_blocks.0.{name}.weight" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]
    base = copies(transformer)
    fused = torch.cat([base[name] for name in parts])
    down, up = torch.randn(RANK, fused.shape[1]), torch.randn(fused.shape[0], RANK)
    save_file(
        {"single_blocks.0.linear1.lora_A.weight": down, "single_blocks.0.linear1.lora_B.weight": up}, tmp_path / "f"
    )
    loras.load("fused", tmp_path / "f")
    loras.set([Active("fused")])
    merged = torch.cat([copies(transformer)[name] for name in parts])
    loras.unmerge()
    torch.testing.assert_close(merged, fused + up @ down, atol=1e-6, rtol=0)


def test_scale_and_shift_of_the_last_norm_change_places(tmp_path):
    loras, assembled = lora_set("flux1-dev")
    weight = assembled.components.transformer.norm_out.linear.weight
    base = weight.clone()
    down, up = torch.randn(RANK, base.shape[1]), torch.randn(base.shape[0], RANK)
    name = "lora_unet_final_layer_adaLN_modulation_1"
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, tmp_path / "f")
    loras.load("norm", tmp_path / "f")
    loras.set([Active("norm")])
    shift, scale = (up @ down).chunk(2)
    torch.testing.assert_close(weight.detach(), base + torch.cat([scale, shift]), atol=1e-6, rtol=0)
    loras.unmerge()


def test_a_name_means_the_layer_of_the_vocabulary_that_the_file_is_in(tmp_path):
    """Wan's norm3 is diffusers' norm2; diffusers has a norm3 too, without weights."""
    loras, assembled = lora_set("wan21-t2v")
    norm, query = (assembled.components.transformer.blocks[0].get_submodule(n) for n in ("norm2", "attn1.to_q"))
    before = norm.weight.clone()
    change = torch.randn(norm.weight.shape)
    pair = {"down": torch.randn(RANK, query.in_features), "up": torch.randn(query.out_features, RANK)}
    theirs = {f"diffusion_model.blocks.0.self_attn.q.lora_{name}.weight": tensor for name, tensor in pair.items()}
    ours = {f"transformer.blocks.0.attn1.to_q.lora_{name}.weight": tensor for name, tensor in pair.items()}
    save_file({**theirs, "diffusion_model.blocks.0.norm3.diff": change}, tmp_path / "theirs")
    save_file({**ours, "transformer.blocks.0.norm2.diff": change}, tmp_path / "ours")
    for name in ("theirs", "ours"):
        loras.load(name, tmp_path / name)
        loras.set([Active(name)])
        torch.testing.assert_close(norm.weight.detach(), before + change)
    loras.unmerge()
    assert torch.equal(norm.weight, before)


@pytest.mark.parametrize(
    ("key", "kind", "source"),
    [
        ("layers.24.attention.to_k.lokr_w1", "LoKr", "github.com/huggingface/diffusers/issues/13221"),
        ("oft_unet_double_blocks_1_txt_attn_qkv.oft_blocks.0", "OFT", "github.com/Comfy-Org/ComfyUI/issues/5230"),
        ("lora_unet_down_blocks_1_attn1_to_q.hada_w1_a", "LoHa", "github.com/huggingface/diffusers/issues/3087"),
        ("lora_transformer_single_transformer_blocks_0_attn_to_k.dora_scale", "DoRA", "OneTrainer's DoRA of FLUX.1"),
    ],
)
def test_an_adapter_of_another_kind_is_refused_by_name(key, kind, source, tmp_path):
    loras, _ = lora_set("flux1-dev")
    save_file({key: torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(
        WeightsError, match=f"other.safetensors is not a plain LoRA but {kind} .its key {key}.: refused"
    ):
        loras.load("other", tmp_path / "other.safetensors")

"""LoRAs in the weights of a small module: what is merged, that it comes out again bit for bit, and what is refused."""

import json
import math
import weakref

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from difftool.components.lora import Active, LoraSet
from difftool.errors import PlanError, RecipeError, WeightsError

RANK = 2


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(6, 4)
        self.proj = nn.Conv2d(3, 4, 2, bias=False)


class Model(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.to(dtype)


def model(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return Model(dtype)


def pair(layer, *, rows=4, inner=(6,), rank=RANK, seed=1, prefix="transformer.", **more):
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, *inner, generator=generator), torch.randn(rows, rank, generator=generator)
    tensors = {"lora_A.weight": down, "lora_B.weight": up[:, :, None, None] if len(inner) > 1 else up, **more}
    return {f"{prefix}{layer}.{name}": tensor.contiguous() for name, tensor in tensors.items()}


def delta(tensors, layer="blocks.0.to_q", prefix="transformer."):
    return tensors[f"{prefix}{layer}.lora_B.weight"] @ tensors[f"{prefix}{layer}.lora_A.weight"]


def opened(folder, tensors, *, module=None, metadata=None, **options):
    """A set over one module, with one file loaded as `style`."""
    module = module or model()
    save_file(tensors, folder / "style.safetensors", metadata)
    loras = LoraSet({"transformer": module}, denoisers=("transformer",), original={})
    loras.load("style", folder / "style.safetensors", **options)
    return loras, module


def copies(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def same(module, before):
    return all(torch.equal(before[name], parameter) for name, parameter in module.named_parameters())


def refused(error, call):
    with pytest.raises(error) as caught:
        call()
    return f"{caught.value.args[0]} | {caught.value.hint}"


@pytest.mark.parametrize(
    ("alpha", "metadata", "scale"),
    [
        (None, None, 1.0),
        (torch.tensor(8.0), None, 4.0),
        (torch.tensor(8), None, 4.0),  # some published files hold whole numbers
        (None, {"transformer.lora_alpha": 8, "transformer.r": 2}, 4.0),
        (None, {"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"blocks.0.to_q": 1}}, 0.5),
        (None, {"transformer.lora_alpha": 8, "transformer.use_rslora": True}, 8 / math.sqrt(2)),
        (torch.tensor(6.0), {"transformer.lora_alpha": 8}, 3.0),
    ],
    ids=["none", "tensor", "whole", "metadata", "pattern", "stabilised", "the tensor first"],
)
def test_alpha_over_rank_scales_the_change(tmp_path, alpha, metadata, scale):
    tensors = pair("blocks.0.to_q", **({} if alpha is None else {"alpha": alpha}))
    header = None if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
    loras, module = opened(tmp_path, tensors, metadata=header)
    base = copies(module)
    loras.set([Active("style", 0.5)])
    wanted = base["blocks.0.to_q.weight"] + 0.5 * scale * delta(tensors)
    torch.testing.assert_close(module.blocks[0].to_q.weight.detach(), wanted, atol=1e-6, rtol=0)


def test_the_config_that_peft_writes_beside_the_file_is_read(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6, "peft_type": "LORA"}))
    tensors = pair("blocks.0.to_q", prefix="base_model.model.")
    loras, module = opened(tmp_path, tensors)
    base = copies(module)["blocks.0.to_q.weight"]
    loras.set([Active("style")])
    merged = base + 3 * delta(tensors, prefix="base_model.model.")
    torch.testing.assert_close(module.blocks[0].to_q.weight.detach(), merged, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unmerge_restores_the_base_bit_for_bit(tmp_path, dtype):
    module = model(dtype=dtype)
    module.blocks[0].to_q.weight.data[0, 0] = -0.0  # a sum with 0 would make it +0
    before = copies(module)
    bias = {"diff_b": torch.randn(4)}
    tensors = {**pair("blocks.0.to_q", **bias), **pair("blocks.1.proj", inner=(3, 2, 2))}
    loras, _ = opened(tmp_path, tensors, module=module)
    for _ in range(3):
        loras.set([Active("style", 0.3)])
        assert not same(module, before)
        loras.unmerge()
        assert same(module, before) and not loras.merged
        assert math.copysign(1, module.blocks[0].to_q.weight[0, 0].item()) == -1


def test_a_merge_in_bf16_is_rounded_once(tmp_path):
    module = model(dtype=torch.bfloat16)
    base = copies(module)["blocks.0.to_q.weight"].float()
    tensors = pair("blocks.0.to_q")
    loras, _ = opened(tmp_path, tensors, module=module)
    loras.set([Active("style", 0.001)])
    assert torch.equal(module.blocks[0].to_q.weight, (base + 0.001 * delta(tensors)).to(torch.bfloat16))


def test_a_strength_of_zero_changes_no_bit(tmp_path):
    loras, module = opened(tmp_path, pair("blocks.0.to_q"))
    module.blocks[0].to_q.weight.data[0, 0] = -0.0
    before = copies(module)
    loras.set([Active("style", 0.0)])
    assert same(module, before) and math.copysign(1, module.blocks[0].to_q.weight[0, 0].item()) == -1
    assert loras.describe()[0]["strength"] == 0.0 and not loras.merged


def test_several_are_added_in_their_order_to_one_base(tmp_path):
    first, second = pair("blocks.0.to_q", seed=1), pair("blocks.0.to_q", seed=2)
    loras, module = opened(tmp_path, first)
    save_file(second, tmp_path / "second")
    loras.load("second", tmp_path / "second")
    base = copies(module)["blocks.0.to_q.weight"]
    orders = {}
    for names in (("style", "second"), ("second", "style")):
        loras.set([Active(name, {"style": 0.7, "second": -0.4}[name]) for name in names])
        orders[names] = module.blocks[0].to_q.weight.detach().clone()
        assert [record["nickname"] for record in loras.describe()] == list(names)
    one, other = orders.values()
    exact = base.double() + 0.7 * delta(first).double() - 0.4 * delta(second).double()
    torch.testing.assert_close(one, exact.float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)  # the order decides no more than rounding
    terms = [(0.7, delta(first)), (-0.4, delta(second))]
    in_order = base.clone()
    for strength, change in terms:
        in_order.add_(change, alpha=strength)
    assert torch.equal(one, in_order)


def test_switching_and_changing_a_strength_leave_nothing_of_the_one_before(tmp_path):
    loras, module = opened(tmp_path, pair("blocks.0.to_q"))
    save_file(pair("blocks.1.to_q", seed=2), tmp_path / "second")
    loras.load("second", tmp_path / "second")
    base = copies(module)
    loras.set([Active("style", 1.0)])
    once = copies(module)
    loras.set([Active("second")])
    assert torch.equal(module.blocks[0].to_q.weight, base["blocks.0.to_q.weight"])
    assert not torch.equal(module.blocks[1].to_q.weight, base["blocks.1.to_q.weight"])
    loras.set([Active("style", 3.0)])
    loras.set([Active("style", 1.0)])
    assert same(module, once)
    loras.set([])
    assert same(module, base)


def test_what_was_set_can_be_merged_again_with_another_strength(tmp_path):
    tensors = pair("blocks.0.to_q")
    loras, module = opened(tmp_path, tensors)
    base = copies(module)["blocks.0.to_q.weight"]
    loras.set([Active("style", 0.5)])
    half = copies(module)
    loras.unmerge()
    assert loras.active == (Active("style", 0.5),)
    loras.merge()
    assert same(module, half)
    loras.merge(strength=2.0)
    torch.testing.assert_close(module.blocks[0].to_q.weight.detach(), base + 2 * delta(tensors), atol=1e-5, rtol=0)


def test_a_file_is_read_again_once_it_has_changed(tmp_path):
    loras, module = opened(tmp_path, pair("blocks.0.to_q"))
    path, base = tmp_path / "style.safetensors", copies(module)
    loras.set([Active("style")])
    kept = loras.load("style", path)
    assert loras.load("style", path) is kept
    save_file(pair("blocks.1.to_q", rank=3), path)
    assert loras.load("style", path) is not kept
    assert same(module, base) and loras.active == ()
    loras.forget("style")
    assert loras.loaded == {}


def test_a_target_is_one_of_two_denoisers_or_all_that_the_file_is_for(tmp_path):
    modules = {"transformer": model(1), "transformer_2": model(2), "text_encoder": model(3)}
    loras = LoraSet(modules, denoisers=("transformer", "transformer_2"), original={})
    save_file({**pair("blocks.0.to_q"), **pair("blocks.1.to_q", prefix="lora_te1_")}, tmp_path / "both")
    loras.load("both", tmp_path / "both")
    before = {name: copies(module) for name, module in modules.items()}

    def changed(target):
        loras.set([Active("both", 1.0, target)])
        return {name for name, module in modules.items() if not same(module, before[name])}

    assert changed("transformer_2") == {"transformer_2"}
    assert loras.describe()[0]["not_targeted"] == 2
    assert changed("transformer") == {"transformer"}
    assert changed("all") == set(modules)
    assert loras.describe()[0]["not_targeted"] == 0
    loras.unmerge("transformer")
    assert same(modules["transformer"], before["transformer"]) and set(loras.merged) == {
        "transformer_2",
        "text_encoder",
    }


def test_a_target_that_the_model_does_not_have_is_refused(tmp_path):
    loras, module = opened(tmp_path, pair("blocks.0.to_q"))
    before = copies(module)
    for target, name in (("critic", "fake_score_transformer"), ("transformer_2", "transformer_2")):
        said = refused(RecipeError, lambda target=target: loras.set([Active("style", 1.0, target)]))
        assert said.startswith(f"error: LoRA target {target}: this model has no {name}; use all or transformer")
    assert "no LoRA is called 'stile'; loaded: style" in refused(RecipeError, lambda: loras.set([Active("stile")]))
    assert same(module, before)


def test_a_pipeline_without_a_known_denoiser_takes_none(tmp_path):
    save_file(pair("blocks.0.to_q"), tmp_path / "style.safetensors")
    loras = LoraSet({"text_encoder": model()}, denoisers=(), original={})
    loras.load("style", tmp_path / "style.safetensors")
    said = refused(PlanError, lambda: loras.set([Active("style")]))
    assert said.startswith("style.safetensors cannot be merged: this pipeline has no part that is known as its denoise")


def test_a_file_that_changes_no_layer_is_an_error(tmp_path):
    loras, module = opened(tmp_path, pair("layers.0.to_z"))
    before = copies(module)
    assert refused(WeightsError, lambda: loras.set([Active("style")])) == (
        "style.safetensors changes no layer of transformer: its keys are such as "
        "transformer.layers.0.to_z.lora_A.weight, transformer.layers.0.to_z.lora_B.weight | "
        "it was made for another model; nothing was merged"
    )
    assert same(module, before) and loras.active == ()


def test_a_match_below_min_match_is_an_error_and_a_lower_one_merges_what_fits(tmp_path):
    tensors = {**pair("blocks.0.to_q"), **pair("blocks.7.to_q"), "blocks.0.to_q.magic": torch.zeros(1)}
    loras, module = opened(tmp_path, tensors)
    assert refused(WeightsError, lambda: loras.set([Active("style")])) == (
        "style.safetensors: 2 of 5 keys (40%) have a layer in transformer, and min_match is 95%; without one: "
        "blocks.0.to_q.magic, transformer.blocks.7.to_q.lora_A.weight, transformer.blocks.7.to_q.lora_B.weight | "
        "it was made for another model; a lower min_match merges what fits"
    )
    loras.load("style", tmp_path / "style.safetensors", min_match=0.4)
    loras.set([Active("style")])
    (record,) = loras.describe()
    assert record["modules"] == {"transformer": {"layers": 1, "keys": 2, "of": 5}}
    assert record["missing"][0] == "blocks.0.to_q.magic"


def test_keys_of_a_text_encoder_that_is_not_there_count_as_missing(tmp_path):
    tensors = {**pair("blocks.0.to_q"), **pair("encoder.layers.0.mlp", prefix="lora_te2_")}
    loras, _ = opened(tmp_path, tensors)
    assert "2 of 4 keys (50%)" in refused(WeightsError, lambda: loras.set([Active("style")]))
    loras.set([Active("style", 1.0, "transformer")])
    assert loras.describe()[0]["not_targeted"] == 2


def test_another_shape_names_the_layer_and_both_shapes(tmp_path):
    loras, module = opened(tmp_path, pair("blocks.0.to_q", inner=(9,)))
    before = copies(module)
    said = refused(WeightsError, lambda: loras.set([Active("style")]))
    assert said.startswith(
        "style.safetensors was made for another model: blocks.0.to_q is [4, 9] in it and [4, 6] in the"
    )
    assert same(module, before)


def test_half_a_pair_and_a_damaged_file_are_refused(tmp_path):
    half = {name: tensor for name, tensor in pair("blocks.0.to_q").items() if "lora_A" in name}
    assert "has no complete pair for blocks.0.to_q" in refused(WeightsError, lambda: opened(tmp_path, half))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "style.safetensors").read_bytes()[:-8])
    loras = LoraSet({"transformer": model()}, denoisers=("transformer",), original={})
    assert "is truncated" in refused(WeightsError, lambda: loras.load("cut", tmp_path / "cut.safetensors"))


def test_a_file_with_numbers_that_are_not_finite_is_refused(tmp_path):
    tensors = pair("blocks.0.to_q", alpha=torch.tensor(float("nan")))
    said = refused(WeightsError, lambda: opened(tmp_path, tensors))
    assert said.startswith("style.safetensors: transformer.blocks.0.to_q.alpha holds numbers that are not finite")


def test_a_config_that_asks_for_more_than_a_plain_lora_is_refused(tmp_path):
    header = {"lora_adapter_metadata": json.dumps({"transformer.use_dora": True})}
    said = refused(WeightsError, lambda: opened(tmp_path, pair("blocks.0.to_q"), metadata=header))
    assert said.startswith("style.safetensors is not a plain LoRA but DoRA (its config sets use_dora): refused")


def test_weights_that_cannot_be_merged_into_are_refused(tmp_path):
    loras, module = opened(tmp_path, pair("blocks.0.to_q"))
    weight = module.blocks[0].to_q.weight
    module.blocks[0].to_q.weight = nn.Parameter(weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    said = refused(PlanError, lambda: loras.set([Active("style")]))
    assert said.startswith("a LoRA cannot be merged into transformer.blocks.0.to_q.weight, which is float8_e4m3fn")


def test_weights_that_another_transform_replaces_are_not_kept():
    module = model()
    loras = LoraSet({"transformer": module}, denoisers=("transformer",), original={})
    weight = weakref.ref(module.blocks[0].to_q.weight)
    module.blocks[0].to_q = nn.Identity()
    assert weight() is None and loras.active == ()

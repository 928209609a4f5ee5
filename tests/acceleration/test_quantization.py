"""Quantization as a transform: which layers it takes, what it says of them, and what it refuses."""

import copy

import pytest
import torch
from families.running import assemble_case
from torch import nn

from difftool.acceleration import quantization
from difftool.acceleration.low_precision import QuantizedLinear
from difftool.components.loaded import Components
from difftool.errors import PlanError, RecipeError
from difftool.facts import Applied, Refused

CPU = torch.device("cpu")
ROLES = {"denoising": ("transformer",), "text_encoding": ()}
LISTS = ("transformer_blocks", "single_transformer_blocks")  # 2 + 2 blocks


def quantized(model, asked, *, lists=LISTS, dtype=torch.float32):
    """A copy of a denoiser after quantization, and what was said of it."""
    model = copy.deepcopy(model)
    applied = quantization.resolve({"denoising": asked}, ROLES, {"transformer": dtype}, CPU)
    assert isinstance(applied, Applied), applied
    components = Components({"transformer": model}, None)
    done = quantization.apply(components, ROLES, applied, dtypes={"transformer": dtype}, lists=lists)
    return model, done["quantization"].detail["transformer"]


def taken(model):
    return [path for path, module in model.named_modules() if isinstance(module, QuantizedLinear)]


@pytest.fixture(scope="module")
def flux():
    return assemble_case("flux1-dev").components.transformer


def test_layers_of_the_blocks_are_quantized_and_what_is_around_them_stays(flux):
    model, record = quantized(flux, "int8")
    linears = [path for path, module in flux.named_modules() if isinstance(module, nn.Linear)]
    inside = [path for path in linears if path.startswith(LISTS)]
    assert taken(model) == inside and len(inside) == record["layers"]
    assert record["kept"] == {"outside the blocks": len(linears) - len(inside)}
    before, after = (sum(p.nbytes for p in each.parameters()) for each in (flux, model))
    numbers = sum(flux.get_submodule(path).weight.numel() for path in inside)
    scales = sum(flux.get_submodule(path).out_features for path in inside)
    assert record["bytes"] == {"before": before, "after": after} and before - after == 3 * numbers - 4 * scales
    options = {key: record[key] for key in ("name", "activations", "granularity")}
    assert options == {"name": "int8", "activations": "dynamic", "granularity": "per_row"}


def test_blocks_at_both_ends_of_the_chain_and_layers_by_name_are_kept(flux):
    asked = {"name": "fp8", "keep_first_blocks": 1, "keep_last_blocks": 1, "exclude": ["*.to_q", "*.net.2"]}
    model, record = quantized(flux, asked)
    blocks = {".".join(path.split(".")[:2]) for path in taken(model)}
    assert blocks == {"transformer_blocks.1", "single_transformer_blocks.0"}
    assert not [path for path in taken(model) if path.endswith((".to_q", ".net.2"))]
    assert record["kept"]["excluded"] == 2 + 2 and record["kept"]["in the first or last blocks"] > 10


def test_nothing_asked_for_is_nothing_done(flux):
    applied = quantization.resolve({"denoising": "none"}, ROLES, {"transformer": torch.float32}, CPU)
    assert applied == Applied({})
    assert quantization.apply(Components({"transformer": flux}, None), ROLES, applied, dtypes={}) == {}
    assert taken(flux) == []


def test_what_a_device_cannot_compute_is_refused_with_the_words_of_torch():
    spec, dtypes = {"denoising": {"name": "fp8", "activations": "none"}}, {"transformer": torch.float32}
    found = quantization.resolve(spec, ROLES, dtypes, torch.device("meta"))
    assert isinstance(found, Refused)
    assert found.reason.startswith("stages.denoising.quantization=fp8: meta cannot compute it: Tensor.item() cannot")
    assert found.reason.endswith("; use none")


def test_patterns_that_name_no_layer_are_refused(flux):
    with pytest.raises(
        RecipeError, match=r"quantization.exclude: 'to_q' names no linear layer of transformer"
    ) as found:
        quantized(flux, {"name": "fp8", "exclude": ["*.to_k", "to_q"]})
    assert found.value.hint.startswith("* stands for anything; layers are called like ")


def test_options_that_leave_nothing_are_refused(flux):
    with pytest.raises(PlanError, match="quantization=fp8 leaves nothing to quantize: .* in the first or last blocks"):
        quantized(flux, {"name": "fp8", "keep_first_blocks": 3, "keep_last_blocks": 1})


class Odd(nn.Linear):
    """A layer that is called in another way."""


class Tower(nn.Module):
    """A model that no family describes: layers of every kind that stays."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.layers = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(16, 32), "down": nn.Linear(32, 16)}) for _ in "12")
        self.heads = nn.ModuleList([nn.Linear(16, 32, bias=False), Odd(16, 16), nn.Linear(16, 16).bfloat16()])
        self.heads[0].weight = self.embed.weight


def test_layers_that_are_shared_odd_or_kept_otherwise_stay():
    model, record = quantized(Tower().requires_grad_(False), "fp8", lists=())
    assert taken(model) == ["layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down"]
    assert record["kept"] == {
        "with weights that other modules have too": 1,
        "of the class Odd": 1,
        "kept in bfloat16 by the model": 1,
    }
    assert model.heads[0].weight is model.embed.weight


def test_the_ends_of_lists_that_no_family_describes_are_those_of_each(flux):
    model, _ = quantized(Tower().requires_grad_(False), {"name": "int8", "keep_first_blocks": 1}, lists=())
    assert taken(model) == ["layers.1.up", "layers.1.down"]

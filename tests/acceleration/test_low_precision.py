"""Linear layers with weights of eight bits: their numbers, their products, and what is asked of them by others."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from difftool.acceleration.low_precision import FORMATS, QuantizedLinear, quantize

EVERY = [(name, granularity) for name in FORMATS for granularity in ("per_row", "per_tensor")]
# half the distance between neighbours: of the largest of whole numbers, of three bits behind a leading one
STEP = {"int8": lambda values, scales: 0.5 * scales, "fp8": lambda values, scales: values.abs() / 16 + scales * 2**-10}


def layer_of(inputs=64, outputs=96, *, dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias).to(dtype).requires_grad_(False)


def rows(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def numbers(tensor, name, granularity):
    """What is left of a tensor: numbers of the format, scaled back."""
    values, scales = quantize(tensor, name, granularity)
    return values.double() * scales.double()


@pytest.mark.parametrize(("name", "granularity"), EVERY)
def test_a_number_is_rounded_to_the_nearest_one_of_its_format(name, granularity):
    values = rows(40, 64) * torch.logspace(-3, 3, 40)[:, None]
    found, scales = quantize(values, name, granularity)
    assert found.dtype == FORMATS[name].dtype and scales.shape == ((40, 1) if granularity == "per_row" else (1, 1))
    error = (found.double() * scales.double() - values.double()).abs()
    assert (error <= STEP[name](values, scales).double() * (1 + 1e-5)).all()
    largest = (
        (found.float().abs() * scales).amax(-1) if granularity == "per_row" else (found.float() * scales).abs().max()
    )
    torch.testing.assert_close(largest, values.abs().amax(-1) if granularity == "per_row" else values.abs().max())


def test_rows_of_zeros_stay_zeros():
    found, scales = quantize(torch.zeros(2, 4), "fp8", "per_row")
    assert not found.float().any() and scales.isfinite().all()


@pytest.mark.parametrize(("name", "granularity"), EVERY)
@pytest.mark.parametrize(("count", "inputs", "outputs"), [(1, 64, 96), (40, 64, 96), (40, 61, 85)])
def test_both_factors_have_eight_bits_where_activations_are_dynamic(name, granularity, count, inputs, outputs):
    """Few rows and odd sizes too, which the kernels do not take as they are."""
    layer, given = layer_of(inputs, outputs), rows(1, count, inputs)
    made = QuantizedLinear(layer, name, granularity=granularity, dynamic=True)(given)
    expected = functional.linear(
        numbers(given[0], name, granularity), numbers(layer.weight, name, granularity), layer.bias.double()
    )
    torch.testing.assert_close(made[0].double(), expected, rtol=1e-5, atol=1e-5)  # sums in fp32


@pytest.mark.parametrize(("name", "granularity"), EVERY)
def test_the_weights_alone_have_them_where_activations_have_none(name, granularity):
    layer, given = layer_of(), rows(2, 3, 64)
    made = QuantizedLinear(layer, name, granularity=granularity, dynamic=False)(given)
    expected = functional.linear(given.double(), numbers(layer.weight, name, granularity), layer.bias.double())
    torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_is_computed_alike_among_few_and_many(name):
    """As long as each has a scale of its own: ranks have parts of the tokens."""
    layer = QuantizedLinear(layer_of(), name, granularity="per_row", dynamic=True)
    given = rows(40, 64)
    assert torch.equal(layer(given)[:5], layer(given[:5])) and layer(given[:0]).shape == (0, 96)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dynamic", [True, False])
def test_it_answers_in_the_dtype_given_and_is_taken_for_a_layer_of_its_own(name, dtype, dynamic):
    layer = layer_of(dtype=dtype, bias=False)
    made = QuantizedLinear(layer, name, granularity="per_row", dynamic=dynamic)
    given = rows(3, 64, dtype=dtype)
    found, expected = made(given), layer(given)
    assert found.dtype == dtype and (found - expected).float().norm() < 0.05 * expected.float().norm()
    assert (made.weight.dtype, made.weight.shape, made.weight.device.type) == (dtype, layer.weight.shape, "meta")
    assert sum(p.nbytes for p in made.parameters()) == 64 * 96 + 4 * 96

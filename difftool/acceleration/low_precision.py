"""A linear layer with weights of eight bits, and its product with activations of eight bits or of more.

Legend: M rows of an input, I inputs and O outputs of a layer. Numbers are stored as whole or short floating-point ones
with a scale in fp32, which they are multiplied by: one for each row (output) of the weights and each row of the input,
or one for all. Source: torch's `_int_mm` and `_scaled_mm`, which sum in int32 and fp32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from difftool.parallel.mesh import Line
from difftool.parallel.tensor import GatheredLinear, RowLinear

FEWEST_ROWS = 32  # `_int_mm` on CUDA takes more than 16
SMALLEST = 1e-12  # a scale: rows of zeros have none of their own


@dataclass(frozen=True)
class Format:
    """Numbers of eight bits up to `largest`, kept as `stored`: a dtype that is not taken for that of the model.

    Products of two such factors want I and O to be multiples of `multiple`: zeros are put behind others.
    """

    dtype: torch.dtype
    stored: torch.dtype
    largest: float
    multiple: int


FORMATS: Mapping[str, Format] = {
    "fp8": Format(torch.float8_e4m3fn, torch.uint8, 448.0, multiple=16),
    "int8": Format(torch.int8, torch.int8, 127.0, multiple=8),
}


def quantize(tensor: Tensor, name: str, granularity: str) -> tuple[Tensor, Tensor]:
    """[R, C] -> the nearest numbers of the format, [R, C], and the scales in fp32, [R, 1] or [1, 1]."""
    form, wide = FORMATS[name], tensor.float()
    largest = wide.abs().amax(-1, keepdim=True) if granularity == "per_row" else wide.abs().amax().reshape(1, 1)
    scales = largest.clamp(min=SMALLEST) / form.largest
    scaled = (wide / scales).clamp(-form.largest, form.largest)
    return (scaled if form.dtype.is_floating_point else scaled.round()).to(form.dtype), scales


class QuantizedLinear(nn.Module):
    """[…, I] -> […, O] in the dtype given. In place of a layer that is cut among ranks it joins them as that one does.

    `weight` has the shape and dtype that the weights had, for what asks for them, and no numbers.
    """

    def __init__(self, layer: nn.Linear, name: str, *, granularity: str, dynamic: bool):
        super().__init__()
        self.name, self.granularity, self.dynamic = name, granularity, dynamic
        self.out_features, self.in_features = layer.weight.shape
        self.weight = torch.empty_like(layer.weight, device="meta")
        multiple = FORMATS[name].multiple if dynamic else 1
        self.more_inputs, more_outputs = -self.in_features % multiple, -self.out_features % multiple
        values, scales = quantize(_padded(layer.weight, more_outputs, self.more_inputs), name, granularity)
        self.values = nn.Parameter(values.view(FORMATS[name].stored), requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = layer.bias
        self.summed: Line | None = layer.line if isinstance(layer, RowLinear) else None
        self.gathered: Line | None = layer.line if isinstance(layer, GatheredLinear) else None
        self.sizes: Sequence[int] = layer.sizes if isinstance(layer, GatheredLinear) else ()

    def forward(self, input: Tensor) -> Tensor:
        made = self._product(input)
        if self.summed is not None:
            made = self.summed.all_reduce(made.contiguous())  # without what was put behind
        if self.bias is not None:
            made = made + self.bias
        if self.gathered is not None:
            made = torch.cat(self.gathered.gather(made, made.ndim - 1, self.sizes), -1)
        return made

    def _product(self, input: Tensor) -> Tensor:
        values = self.values.view(FORMATS[self.name].dtype)
        if not self.dynamic:
            return functional.linear(input, (values.float() * self.scales).to(input.dtype))
        rows = input.reshape(-1, self.in_features)
        count = rows.shape[0]
        padded = _padded(rows, max(0, FEWEST_ROWS - count), self.more_inputs)
        own, scales = quantize(padded, self.name, self.granularity)
        made = PRODUCTS[self.name](own, values, scales, self.scales, input.dtype)
        return made[:count, : self.out_features].reshape(*input.shape[:-1], self.out_features)


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """With so many more rows and columns, of zeros."""
    return functional.pad(matrix, (0, columns, 0, rows)) if rows or columns else matrix


def _int8_product(input: Tensor, weight: Tensor, rows: Tensor, outputs: Tensor, dtype: torch.dtype) -> Tensor:
    """[M, I] and [O, I] with their scales -> [M, O]."""
    return (torch._int_mm(input, weight.t()).float() * rows * outputs.t()).to(dtype)


def _fp8_product(input: Tensor, weight: Tensor, rows: Tensor, outputs: Tensor, dtype: torch.dtype) -> Tensor:
    """[M, I] and [O, I] with their scales -> [M, O]."""
    # CUDA has the kernel with a scale a row for bf16 alone
    made = torch.bfloat16 if input.is_cuda and rows.shape[0] > 1 else dtype
    scales = {"scale_a": rows, "scale_b": outputs.t().contiguous()}
    return torch._scaled_mm(input, weight.t(), **scales, out_dtype=made).to(dtype)


Product = Callable[[Tensor, Tensor, Tensor, Tensor, torch.dtype], Tensor]
PRODUCTS: Mapping[str, Product] = {"fp8": _fp8_product, "int8": _int8_product}

"""What quantization leaves of a denoiser's weights, by counting its layers. Torch-free."""

from collections.abc import Mapping
from typing import Any

from difftool.anatomy import FP32, Anatomy
from difftool.planning.plan import QuantizedPrediction


def quantized_layers(
    anatomy: Anatomy, asked: str | Mapping[str, Any], element: int, tp: int = 1, index: int = 0
) -> QuantizedPrediction | None:
    """Of one rank: a byte for a weight, and a scale in fp32 for each row or each layer. `element` is bytes of a value
    in the denoiser's precision. None without quantization. Which layers `exclude` names is not known here.
    """
    options: Mapping[str, Any] = {"name": asked} if isinstance(asked, str) else asked
    if options["name"] == "none":
        return None
    chain = [block for block in anatomy.blocks if block.dealt and block.name for _ in range(block.count)]
    first, last = options.get("keep_first_blocks", 0), options.get("keep_last_blocks", 0)
    linears = [li for block in chain[first : max(first, len(chain) - last)] for li in block.linears if not li.fp32]
    saved = 0
    for linear in linears:
        outputs, inputs = linear.shapes(tp, index)[0]
        scales = 1 if options.get("granularity") == "per_tensor" else outputs
        saved += linear.count * (outputs * inputs * (element - 1) - FP32 * scales)
    return QuantizedPrediction(
        name=options["name"],
        layers=sum(linear.count for linear in linears),
        of=sum(linear.count for block in chain for linear in block.linears),
        at_most=bool(options.get("exclude")),
        saved=saved,
    )

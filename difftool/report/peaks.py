"""What devices can compute at most, as their makers publish it: the number that a run's FLOP/s are a share of.

Dense matrix products, in TFLOP/s, by the name that torch tells. 16 bits are bf16 and fp16 alike, added up in fp32: on
GeForce cards that is half of what adding up in fp16 does. fp32 is without TF32, which nothing here turns on.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

TERA = 1e12


class Peak(NamedTuple):
    """TFLOP/s of one device."""

    half: float
    fp32: float


A100 = Peak(312, 19.5)  # NVIDIA A100 Tensor Core GPU data sheet

# Data sheets print some of these with sparsity: halved here
PEAKS: Mapping[str, Peak] = {
    "NVIDIA A10": Peak(125, 31.2),  # NVIDIA A10 Tensor Core GPU data sheet
    "NVIDIA A100-PCIE-40GB": A100,
    "NVIDIA A100 80GB PCIe": A100,
    "NVIDIA A100-SXM4-40GB": A100,
    "NVIDIA A100-SXM4-80GB": A100,
    "NVIDIA A40": Peak(149.7, 37.4),  # NVIDIA A40 data sheet
    "NVIDIA H100 80GB HBM3": Peak(989.4, 66.9),  # H100 SXM5: NVIDIA H100 Tensor Core GPU Architecture, table 3
    "NVIDIA H100 PCIe": Peak(756, 51.2),  # the same
    "NVIDIA H100 NVL": Peak(835.5, 60),  # NVIDIA H100 Tensor Core GPU data sheet
    "NVIDIA H200": Peak(989.4, 66.9),  # H200 SXM, the same chip: NVIDIA H200 Tensor Core GPU data sheet
    "NVIDIA H200 NVL": Peak(835.5, 60),  # the same
    "NVIDIA B200": Peak(2250, 75),  # an eighth of HGX B200: NVIDIA Blackwell data sheet
    "NVIDIA L4": Peak(121, 30.3),  # NVIDIA L4 Tensor Core GPU data sheet
    "NVIDIA L40": Peak(181.05, 90.5),  # NVIDIA L40 data sheet
    "NVIDIA L40S": Peak(362.05, 91.6),  # NVIDIA L40S data sheet
    "NVIDIA GeForce RTX 3090": Peak(71, 35.6),  # NVIDIA Ampere GA102 GPU Architecture, table 9
    "NVIDIA GeForce RTX 4090": Peak(165.2, 82.6),  # NVIDIA Ada GPU Architecture, appendix A
    "NVIDIA GeForce RTX 5090": Peak(209.5, 104.8),  # NVIDIA RTX Blackwell GPU Architecture, appendix A
    "AMD Instinct MI300X": Peak(1307.4, 163.4),  # AMD Instinct MI300X data sheet
}


def peak_flops(device: str, precision: str) -> float | None:
    """FLOP/s of one device in `fp32`, `bf16` or `fp16`; None where nothing is published under its name."""
    found = PEAKS.get(device)
    if found is None:
        return None
    return (found.fp32 if precision == "fp32" else found.half) * TERA


def peak_of_ranks(device: str, precisions: Collection[str], *, ranks: int) -> float | None:
    """FLOP/s of so many of a device in the precision of what they compute; None where that is not one, or nothing is
    published of the device.
    """
    peak = peak_flops(device, next(iter(precisions))) if len(set(precisions)) == 1 else None
    return None if peak is None else peak * ranks

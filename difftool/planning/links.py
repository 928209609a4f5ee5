"""How fast ranks compute and speak, for predictions: a small table of assumptions, each with its source.

None of it was measured here. A bandwidth is what one GPU sends in one direction; `seconds` is what a collective takes
beyond its bytes, with the copies before and after it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """Bytes a second, and seconds a call."""

    bandwidth: float
    seconds: float


WITHIN = {
    # 450 GB/s a direction in the data sheet of an H100 SXM, of which collectives reach about 350; the seconds are what
    # xDiT's published FLUX.1 runs on four H100 leave for each of their exchanges
    "NVLink": Link(350e9, 65e-6),
    "PCIe": Link(50e9, 65e-6),  # PCIe 5.0 x16: 63 GB/s a direction, of which copies reach about 50
}
BETWEEN = {
    "InfiniBand": Link(50e9, 75e-6),  # NDR, 400 Gb/s for each GPU
    "Ethernet": Link(25e9, 100e-6),  # 200 Gb/s for each GPU
}

# FLOP/s of a card: 16-bit denoisers make 311 to 484 TFLOP/s on an H100 in what diffusers, xDiT and PyTorch publish of
# FLUX.1-dev; in fp32 two thirds of the data sheet's 67
RATES = {"bf16": 400e12, "fp16": 400e12, "fp32": 45e12}

"""What GPUs and networks can do: one table for estimates, utilisation and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GIB", "GPUS", "NETWORKS", "Gpu", "peak_tflops"]

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A GPU and the node that it is part of.

    Attributes:
        memory: The memory that a process can allocate, in GiB.
        peak: The vendor's dense bfloat16 peak, in TFLOP/s, to which utilisation (MFU) refers.
        half: The rate of large bfloat16 matrix products, in TFLOP/s.
        single: The rate of large float32 matrix products without TF32, in TFLOP/s.
        bandwidth: The memory bandwidth, in GB/s.
        link: The bandwidth to each other GPU of the node, per direction, in GB/s.
        per_node: The number of GPUs in a node.
    """

    memory: float
    peak: float
    half: float
    single: float
    bandwidth: float
    link: float
    per_node: int


# Rates are measured on the H100. Those of the others are 0.8 of the vendor's data sheet.
GPUS = {
    "a100-40": Gpu(39, peak=312, half=250, single=16, bandwidth=1250, link=240, per_node=8),
    "a100-80": Gpu(79, peak=312, half=250, single=16, bandwidth=1600, link=240, per_node=8),
    "h100": Gpu(79, peak=989, half=790, single=54, bandwidth=3000, link=360, per_node=8),
    "h200": Gpu(140, peak=989, half=790, single=54, bandwidth=3800, link=360, per_node=8),
    "l40s": Gpu(44, peak=362, half=290, single=73, bandwidth=690, link=25, per_node=8),
    "rtx4090": Gpu(23, peak=165, half=130, single=66, bandwidth=800, link=20, per_node=4),
}

NETWORKS = {"ndr400": 45.0, "hdr200": 22.0, "edr100": 11.0, "ethernet100": 1.4, "ethernet25": 0.35}
"""The bandwidth between nodes in GB/s per GPU: an InfiniBand port per GPU, or one Ethernet port
for a node of eight GPUs."""


def peak_tflops(device_name: str) -> float | None:
    """The vendor's dense bfloat16 peak of a device, in TFLOP/s.

    Arguments:
        device_name: The name that CUDA reports, such as `NVIDIA H100 80GB HBM3`.

    Returns:
        The peak, or None for a GPU that is not in the table.
    """
    words = device_name.lower().replace("rtx ", "rtx").replace("-", " ").split()
    return next((gpu.peak for name, gpu in GPUS.items() if name.partition("-")[0] in words), None)

"""What a network takes per pass, as a function of the micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

from lola_ds.estimate.pass_cost import PassCost
from lola_ds.hardware import Gpu

__all__ = ["Workload", "pass_seconds"]

LAUNCH_SECONDS = 4e-6
"""The least time that a kernel takes when Python launches it asynchronously."""


@dataclass(frozen=True)
class Workload:
    """A network under one checkpointing policy, whose costs are linear in the micro-batch.

    Attributes:
        policy: The checkpointing policy.
        low: The cost of a pass over a small micro-batch.
        high: The cost of a pass over a larger one.
    """

    policy: str
    low: PassCost
    high: PassCost

    @property
    def parameters(self) -> int:
        """The number N of trainable parameters."""
        return self.low.parameters

    @property
    def flops(self) -> float:
        """The floating-point operations per sample, forward and backward."""
        return (self.high.flops - self.low.flops) / (self.high.samples - self.low.samples)

    @property
    def sample_bytes(self) -> float:
        """The bytes of activations per sample."""
        return self.activations(1) - self.activations(0)

    def activations(self, samples: int) -> int:
        """The peak in bytes if each gradient is freed as soon as it is complete."""
        return round(self._line(samples, self.low.activations, self.high.activations))

    def with_gradients(self, samples: int) -> int:
        """The peak in bytes if gradients are kept."""
        return round(self._line(samples, self.low.with_gradients, self.high.with_gradients))

    def comm_bytes(self, samples: int) -> float:
        """The bytes that a pass sends to the ranks that share the samples' tokens."""
        return self._line(samples, self.low.comm_bytes, self.high.comm_bytes)

    def seconds(self, samples: int, gpu: Gpu) -> float:
        """The time of a forward and backward pass on `gpu`."""
        return self._line(samples, pass_seconds(self.low, gpu), pass_seconds(self.high, gpu))

    def _line(self, samples: int, low: float, high: float) -> float:
        slope = (high - low) / (self.high.samples - self.low.samples)
        return low + slope * (samples - self.low.samples)


def pass_seconds(cost: PassCost, gpu: Gpu) -> float:
    """The time of a pass by a roofline: each kernel takes as long as its slowest part, which is
    arithmetic, memory traffic, communication or launch."""
    rates = {True: gpu.half * 1e12, False: gpu.single * 1e12}
    return sum(
        max(
            kernel.flops / rates[kernel.half],
            kernel.bytes / (gpu.bandwidth * 1e9),
            kernel.comm_bytes / (gpu.link * 1e9),
            LAUNCH_SECONDS,
        )
        for kernel in cost.kernels
    )

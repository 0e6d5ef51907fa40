"""Sampling as one CUDA graph, which launches the kernels of all steps at once.

A sampler calls its network sixteen times, with hundreds of small kernels each, and on small latents
the processor cannot launch them as fast as the GPU runs them. A graph is captured once and replayed
without these launches. The function must never wait for the device nor copy to or from it, which
holds for sampling with `ab`.

References:
    | Accelerating PyTorch with CUDA Graphs (Nguyen et al., 2021)
    | https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lola_ds.emulate.sampling import sample
from lola_ds.models.denoiser import Denoiser

__all__ = ["CudaGraphed", "CudaGraphedSampling"]

WARM_UP = 3
"""Calls before the capture, in which compilers compile and libraries choose and allocate."""

Function = Callable[..., Tensor]
Replay = tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]


class CudaGraphed:
    """A function of tensors whose kernels are captured at its first call for every set of shapes.

    Its kernels may depend on the shapes of its arguments only, not on their values; weights may
    change in place. Each graph keeps its own memory. Without a GPU the function is called as it is.

    Arguments:
        function: Takes tensors on one GPU and returns one. Weights that it casts are frozen, or its
            autocast context is its own: what its caller's keeps would not outlive the capture.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.replays: dict[tuple[object, ...], Replay] = {}

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """Returns the function's value, in memory of its own."""
        if not inputs[0].is_cuda:
            return self.function(*inputs)
        key = tuple((x.shape, x.dtype, x.device) for x in inputs)
        if key not in self.replays:
            with torch.cuda.device_of(inputs[0]):
                self.replays[key] = self._capture(inputs)
        graph, arguments, value = self.replays[key]
        for argument, x in zip(arguments, inputs, strict=True):
            argument.copy_(x)
        graph.replay()
        return value.clone()

    def _capture(self, inputs: tuple[Tensor, ...]) -> Replay:
        arguments = [x.clone() for x in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.function(*arguments)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            value = self.function(*arguments)
        return graph, arguments, value


class CudaGraphedSampling:
    """Samples as `sample` does, with one CUDA graph for all steps where that is possible.

    It is for unguided calls of `ab` on a GPU. A graph is kept until a call has other options.
    """

    def __init__(self) -> None:
        self.options: tuple[object, ...] = ()
        self.graphed: CudaGraphed | None = None

    def __call__(
        self,
        denoiser: Denoiser,
        mask: Tensor,
        x_obs: Tensor,
        label: Tensor | None = None,
        *,
        sampler: str,
        steps: int,
        x_1: Tensor,
        guide: Any = None,
        guidance_scale: float = 1.0,
        **noise: Any,
    ) -> Tensor:
        """Draws windows given their known values; see `sample`."""
        given = {"sampler": sampler, "steps": steps, "guidance_scale": guidance_scale}
        if sampler != "ab" or guide is not None or not x_obs.is_cuda:
            return sample(denoiser, mask, x_obs, label, x_1=x_1, guide=guide, **given, **noise)
        options = (denoiser, *given.values())
        if self.graphed is None or self.options != options:
            self.options = options
            self.graphed = CudaGraphed(
                lambda mask, x_obs, x_1, *label: sample(
                    denoiser, mask, x_obs, *label, x_1=x_1, **given
                )
            )
        return self.graphed(mask, x_obs, x_1, *([] if label is None else [label]))

"""Sampling as one CUDA graph: a launch for all its steps.

A sampler calls its network sixteen times, hundreds of small kernels each, and on small latents the
processor cannot issue them as fast as the GPU runs them. What is captured once is replayed without
it. That needs a function that never waits for the device nor copies to or from it; sampling with
`ab` is one.

References:
    | Accelerating PyTorch with CUDA Graphs (Nguyen et al., 2021)
    | https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before the capture, in which compilers compile and libraries choose and allocate."""

Function = Callable[..., Tensor]
Replay = tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]


class Captured:
    """A function of tensors whose kernels are captured at its first call for every set of shapes.

    It must do the same at every call but for the values of its arguments; weights may change in
    place. Each graph keeps its own memory. Without a GPU the function is called as it is.

    Arguments:
        function: takes tensors on one GPU and returns one; an autocast context it needs is its own,
            not its caller's, whose casts would not outlive the capture.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.replays: dict[tuple[object, ...], Replay] = {}

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's value, in memory of its own."""
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

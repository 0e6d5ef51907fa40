"""Each kernel, plain torch, compiled torch and the lower bound given by memory traffic.

    python -m benchmarks.kernels [out=benchmarks/kernels.csv] [rounds=20] [size=large]
                                 [kernels=…] [compiled=true]

Shapes (`size=large`) are those of a block of vit_large on Euler latents, 32 samples, and of the
finest level of dcae_f32c64_large; every tensor is larger than a GPU's cache. Forward and backward
are timed separately and in turns, the best of `rounds`. `floor_ms` is the time of the least traffic
(inputs read and outputs written once) at the measured rate of a copy of 1 GiB. `of_copy` is this
bound over the kernel's time: 1 is perfect. Times are GPU time, without launches. `wins` tells
whether forward and backward together are faster than both plain and compiled torch. A kernel that
does not win should be removed unless it saves memory.

On a CPU the kernels run in Triton's interpreter at `size=tiny` and nothing is compiled. This only
tests the benchmark: the times say nothing about the kernels, and `wins` is empty.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import alternate, describe_machine, write_rows
from lola_ds.config import parse_overrides
from lola_ds.kernels import reference

Operation = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Size:
    """The sizes of tokens (samples, tokens, heads, features per head) and of fields."""

    samples: int
    tokens: int
    heads: int
    features: int
    images: int
    channels: int
    side: int
    copied: int


SIZES = {
    "large": Size(32, 1280, 8, 128, 8, 64, 512, 1 << 30),
    "tiny": Size(2, 7, 2, 16, 1, 8, 4, 1 << 16),
}


@dataclass(frozen=True)
class Entry:
    """A kernel and the same operation in plain torch.

    Attributes:
        inputs: The arguments of both; those that require gradients are differentiated.
        plain: The operation in plain torch.
        fused: The kernel.
        forward: The least number of bytes that the forward pass moves.
        backward: The same for the backward pass; 0 for a kernel without one.
    """

    inputs: Sequence[Tensor | None]
    plain: Operation
    fused: Operation
    forward: int
    backward: int


def entries(size: Size, device: torch.device) -> Iterator[tuple[str, Entry]]:
    """Yields every kernel at a size: the stream in float32, branches in bfloat16."""
    from lola_ds.kernels import activation, averages, denoising, noise, norm, residual, rotary

    B, T, heads, d = size.samples, size.tokens, size.heads, size.features
    H, n = heads * d, B * T * heads * d
    half = torch.bfloat16

    def draw(*shape: int, dtype: torch.dtype = torch.float32, learned: bool = True) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device).requires_grad_(learned)

    def rotate(qkv: Tensor, coordinates: Tensor, theta: Tensor) -> tuple[Tensor, ...]:
        # As in training; without gradients, values are not copied.
        return rotary.rotate_qk(qkv, coordinates, theta, True, 1e-5, True)[:3]

    coordinates = torch.randint(0, 16, (T, 3), device=device).float()
    yield (
        "qk_norm_rope",
        Entry(
            [draw(B, T, 3, heads, d, dtype=half), coordinates, draw(3, H // 2)],
            reference.qk_norm_rope,
            rotate,
            forward=12 * n,
            backward=16 * n,
        ),
    )
    yield (
        "silu_dropout",
        Entry(
            [draw(B, T, 4 * H, dtype=half)],
            lambda x: F.dropout(F.silu(x), 0.05),
            lambda x: activation.silu_dropout(x, 0.05),
            forward=4 * 4 * n,
            backward=6 * 4 * n,
        ),
    )
    yield (
        "gated_residual",
        Entry(
            [draw(B, T, H), draw(B, T, H, dtype=half), draw(B, 1, H), draw(B, T, H), draw(B, 1, H)],
            reference.gated_residual,
            residual.gated_residual,
            forward=14 * n,
            backward=24 * n,
        ),
    )
    yield (
        "modulate",
        Entry(
            [draw(B, T, H), draw(B, 1, H), draw(B, 1, H)],
            lambda x, a, b: reference.modulate(x, a, b, half),
            lambda x, a, b: norm.modulate(x, a, b, half),
            forward=6 * n,
            backward=10 * n,
        ),
    )
    field = draw(size.images, size.channels, size.side, size.side, learned=False)
    field = field.contiguous(memory_format=torch.channels_last).requires_grad_()
    yield (
        "channel_norm",
        Entry(
            [field],
            reference.channel_norm,
            norm.channel_norm,
            forward=8 * field.numel(),
            backward=12 * field.numel(),
        ),
    )
    window, added = (draw(B, H, 5, T // 5 + 1, learned=False) for _ in range(2))
    mask = (torch.arange(5, device=device) < 1).repeat(B, 1)
    scales = [torch.rand(B, device=device) + 0.1 for _ in range(2)]
    yield (
        "denoising_errors",
        Entry(
            [draw(*window.shape), window, added, mask, *scales],
            reference.denoising_errors,
            denoising.denoising_errors,
            forward=12 * window.numel(),
            backward=16 * window.numel(),
        ),
    )
    seeds = torch.arange(B)
    yield (
        "seeded_normal",
        Entry(
            [seeds],
            lambda seeds: reference.seeded_normal(seeds, window.shape[1:], device),
            lambda seeds: noise.seeded_normal(seeds, window.shape[1:], device),
            forward=4 * window.numel(),
            backward=0,
        ),
    )
    weights = [draw(H, k * H, learned=False) for k in (1, 3, 4, 4) for _ in range(4)]
    followers = [[torch.zeros_like(w) for w in weights] for _ in range(2)]

    def follow(function: Callable[..., None]) -> Operation:
        def run(*weights: Tensor) -> tuple[Tensor, ...]:
            function(followers, weights, [0.99, 0.999])
            return ()

        return run

    yield (
        "ema",
        Entry(
            weights,
            follow(reference.ema),
            follow(averages.ema),
            forward=20 * sum(w.numel() for w in weights),
            backward=0,
        ),
    )


def copy_speed(size: Size, rounds: int, device: torch.device) -> float:
    """The bytes per second that a copy reads and writes."""
    x = torch.ones(size.copied // 4, device=device)
    y = torch.empty_like(x)
    (timing,) = alternate([lambda: y.copy_(x)], rounds, device, launched=False)
    return 2 * x.nbytes / timing.best


def backward_of(operation: Operation, entry: Entry) -> Callable[[], object]:
    """The backward pass alone, of a graph that is kept."""
    outputs = operation(*entry.inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    learned = [x for x in entry.inputs if x is not None and x.requires_grad]
    grads = [torch.randn_like(y) for y in outputs]
    return lambda: torch.autograd.grad(outputs, learned, grads, retain_graph=True)


def measure(
    name: str, entry: Entry, speed: float, rounds: int, device: torch.device, compiled: bool
) -> list[dict[str, str]]:
    """Measures a kernel: one row for the forward and one for the backward pass.

    Arguments:
        name: The name of the kernel.
        entry: The kernel and the same operation in plain torch.
        speed: The rate of a copy, in bytes per second.
        rounds: The number of timed calls of each.
        device: The device that they run on.
        compiled: Whether to measure compiled torch, too.
    """
    alternatives = {"eager": entry.plain, "triton": entry.fused}
    if compiled:
        alternatives["compiled"] = torch.compile(entry.plain)

    def forward(operation: Operation) -> object:
        with torch.no_grad():
            return operation(*entry.inputs)

    runs: dict[str, tuple[Sequence[Callable[[], object]], int]] = {
        "forward": ([lambda f=f: forward(f) for f in alternatives.values()], entry.forward)
    }
    with torch._functorch.config.patch(donated_buffer=False):  # several backward passes per graph
        if entry.backward:
            backwards = [backward_of(f, entry) for f in alternatives.values()]
            runs["backward"] = (backwards, entry.backward)
        found = {
            direction: [t.best for t in alternate(calls, rounds, device, launched=False)]
            for direction, (calls, _) in runs.items()
        }
    totals = dict(zip(alternatives, map(sum, zip(*found.values()))))
    interpreted = device.type != "cuda"
    rows = []
    for direction, times in found.items():
        taken, floor = dict(zip(alternatives, times)), runs[direction][1] / speed
        rows.append(
            {
                "kernel": name,
                "direction": direction,
                "megabytes": f"{runs[direction][1] / 1e6:.4g}",
                "floor_ms": f"{1e3 * floor:.4g}",
                "eager_ms": f"{1e3 * taken['eager']:.4g}",
                "compiled_ms": f"{1e3 * taken['compiled']:.4g}" if compiled else "",
                "triton_ms": f"{1e3 * taken['triton']:.4g}",
                "of_copy": f"{floor / taken['triton']:.3f}",
                "wins": "" if interpreted else verdict(totals),
                "copy_gb_per_s": f"{speed / 1e9:.4g}",
                "interpreted": str(interpreted).lower(),
            }
        )
    return rows


def verdict(totals: Mapping[str, float]) -> str:
    """`yes` if the kernel (`triton`) takes less time than all others, else `no`."""
    best = min(seconds for name, seconds in totals.items() if name != "triton")
    return "yes" if totals["triton"] < best else "no"


@dataclass
class Options:
    """The keys of the benchmark."""

    out: str = "benchmarks/kernels.csv"
    rounds: int = 20
    size: str | None = None
    kernels: list[str] | None = None
    compiled: bool | None = None


def main(words: Sequence[str]) -> None:
    """Runs the benchmark; see the module's docstring."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    if not gpu:
        os.environ["TRITON_INTERPRET"] = "1"
    options = parse_overrides(Options, words)
    name = options.size or ("large" if gpu else "tiny")
    compiled = gpu if options.compiled is None else options.compiled
    if name not in SIZES:
        raise ValueError(f"size={name} is unknown; known: {', '.join(SIZES)}")
    size = SIZES[name]
    speed, rows = copy_speed(size, options.rounds, device), []
    for name, entry in entries(size, device):
        if options.kernels is None or name in options.kernels:
            found = measure(name, entry, speed, options.rounds, device, compiled)
            for row in found:
                print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                rows.append({**row, **describe_machine(("torch", "triton"))})
            write_rows(options.out, rows)


if __name__ == "__main__":
    main(sys.argv[1:])

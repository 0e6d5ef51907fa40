r"""The backends of attention, and local windows against global attention.

    python -m benchmarks.attention [out=benchmarks/attention.csv] [cases=euler] [rounds=20]

Queries, keys and values are bfloat16, laid out as the kernels leave them. Forward, and forward and
backward together, are timed in turns, the best of `rounds`; `tflop_per_s` counts two matrix
products forward and five backward over all pairs of tokens, also those outside of a window. A
backend that refuses the shapes has no row. `flex window` is FlexAttention over the blocks that a
window of `WINDOW` tokens along each axis reaches, `dense window` the same mask as a tensor.

Cases: `euler`, `rayleigh_benard`, `gravity_cooling` (vit_large on latents), `pixel` (vit_pixel);
`tiny` for a CPU, which has other backends and no backward of FlexAttention.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.record import alternate, describe_machine, write_rows
from lola_ds.config import parse_overrides
from lola_ds.nn.attention import attend, local_window

WINDOW = 9


@dataclass(frozen=True)
class Case:
    """The numbers of samples, heads and features per head, and the grid of tokens."""

    samples: int
    heads: int
    features: int
    grid: tuple[int, ...]


CASES = {
    "euler": Case(32, 8, 128, (5, 16, 16)),
    "rayleigh_benard": Case(128, 8, 128, (5, 16, 4)),
    "gravity_cooling": Case(16, 8, 128, (5, 8, 8, 8)),
    "pixel": Case(4, 16, 128, (5, 32, 32)),
    "tiny": Case(1, 2, 32, (3, 4, 4)),
}
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "plain": SDPBackend.MATH,
}

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def force_backend(backend: SDPBackend) -> Attention:
    """torch's attention by one backend."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return run


def alternatives(case: Case, device: torch.device) -> dict[str, Attention]:
    """All kinds of attention by name; `attend` is what the project's networks call."""
    grid = case.grid
    periodic = (False, *[True] * (len(grid) - 1))
    blocks = local_window(grid, (WINDOW,) * len(grid), periodic, device)
    found: dict[str, Attention] = {"attend": attend}
    found |= {name: force_backend(backend) for name, backend in BACKENDS.items()}
    found["flex window" if device.type == "cuda" else "dense window"] = lambda q, k, v: attend(
        q, k, v, blocks
    )
    return found


def runs(attention: Attention, tensors: Sequence[Tensor]) -> bool:
    """Whether an attention runs on these tensors, forward and backward."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns why a backend is not used
            torch.autograd.grad(attention(*tensors).sum(), tensors)
    except RuntimeError as error:
        unavailable = ("No available kernel", "No viable backend", "out of memory")
        if any(words in str(error) for words in unavailable):
            return False
        raise
    return True


def measure(name: str, case: Case, rounds: int, device: torch.device) -> list[dict[str, str]]:
    """A row for each attention that runs."""
    tokens = math.prod(case.grid)
    shape = (case.samples, tokens, case.heads, case.features)
    q, k, v = (
        torch.randn(shape, dtype=torch.bfloat16, device=device).transpose(1, 2).requires_grad_()
        for _ in range(3)
    )
    grad = torch.randn_like(q)
    running = {n: a for n, a in alternatives(case, device).items() if runs(a, (q, k, v))}

    def forward(attention: Attention) -> None:
        with torch.no_grad():
            attention(q, k, v)

    def both(attention: Attention) -> None:
        torch.autograd.grad(attention(q, k, v), (q, k, v), grad)

    timings = [
        alternate([partial(run, a) for a in running.values()], rounds, device, launched=False)
        for run in (forward, both)
    ]
    flops = 4 * case.samples * case.heads * tokens**2 * case.features
    rows = []
    for attention, once, twice in zip(running, *timings):
        rows.append(
            {
                "case": name,
                "attention": attention,
                "forward_ms": f"{1e3 * once.best:.4g}",
                "both_ms": f"{1e3 * twice.best:.4g}",
                "forward_tflop_per_s": f"{flops / once.best / 1e12:.4g}",
                "both_tflop_per_s": f"{3.5 * flops / twice.best / 1e12:.4g}",
                "peak_gib": f"{twice.peak / 2**30:.2f}" if twice.peak else "",
            }
        )
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


@dataclass
class Options:
    """The keys of the benchmark."""

    out: str = "benchmarks/attention.csv"
    cases: list[str] | None = None
    rounds: int = 20


def main(words: Sequence[str]) -> None:
    """Runs the benchmark; see the module's docstring."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    options = parse_overrides(Options, words)
    default = [name for name in CASES if name != "tiny"] if gpu else ["tiny"]
    rows = []
    for name in options.cases or default:
        if name not in CASES:
            raise ValueError(f"cases: '{name}' is unknown; known: {', '.join(CASES)}")
        found = measure(name, CASES[name], options.rounds, device)
        rows += [{**row, **describe_machine(("torch", "triton"))} for row in found]
        write_rows(options.out, rows)


if __name__ == "__main__":
    main(sys.argv[1:])

"""The gain of each kernel in a compiled training step over the compiler's own fusion.

    python -m benchmarks.fusion [out=benchmarks/fusion.csv] [case=euler] [batch_size=…] [blocks=4]
                                [rounds=10]

`benchmarks/kernels.py` times operations alone. Here a transformer of `benchmarks/step.py`, cut to a
few blocks, takes whole steps in turns: with all kernels, and with some of them left to the compiler
as plain torch. `gpu_ms` is GPU time; `ms` is wall time, which includes launches.

On a CPU no kernel runs in either variant, which only tests the benchmark.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import alternate, describe_machine, write_rows
from benchmarks.step import CASES, Side, make_batch, make_model
from lola_ds.config import parse_overrides
from lola_ds.kernels import reference
from lola_ds.nn import attention, layers, vit


def silu_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`lola_ds.kernels.silu_dropout` in plain torch."""
    return F.dropout(F.silu(x), p, training)


KERNELS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "qk_norm_rope": (attention, "qk_norm_rope", reference.qk_norm_rope),
    "silu_dropout": (layers, "silu_dropout", silu_dropout),
    "modulate": (vit, "modulate_branches", reference.modulate_branches),
    "gated_residual": (vit, "gated_residual", reference.gated_residual),
}
"""The module and name by which a transformer calls each kernel, and the same in plain torch."""
VARIANTS = ((), *((name,) for name in KERNELS), ("modulate", "gated_residual"), tuple(KERNELS))


def make_step(side: Side, batch: Any, plain: Sequence[str]) -> Callable[[], Tensor]:
    """A training step that leaves the kernels named in `plain` to the compiler."""

    def step() -> Tensor:
        with contextlib.ExitStack() as stack:
            for name in plain:
                module, attribute, function = KERNELS[name]
                stack.enter_context(mock.patch.object(module, attribute, function))
            return side.step(batch)

    return step


@dataclass
class Options:
    """The keys of the benchmark."""

    out: str = "benchmarks/fusion.csv"
    case: str | None = None
    batch_size: int | None = None
    blocks: int = 4
    rounds: int = 10


def main(words: Sequence[str]) -> None:
    """Runs the benchmark; see the module's docstring."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    options = parse_overrides(Options, words)
    known = [name for name, case in CASES.items() if case.task != "autoencoder"]
    name = options.case or ("euler" if gpu else "demo")
    if name not in known:
        raise ValueError(f"case={name} is no transformer's; known: {', '.join(known)}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    case = CASES[name]
    group = "denoiser" if case.task == "diffusion" else "surrogate"
    case = replace(case, words=(*case.words, f"{group}.hid_blocks={options.blocks}"))
    case = replace(case, batch=options.batch_size or case.batch)
    batch = make_batch(case, device)
    steps = [
        make_step(Side(case, make_model(case, "").to(device), ours=True), batch, plain)
        for plain in VARIANTS
    ]
    losses = [float(step()) for step in steps]
    on_clock, on_gpu = (
        alternate(steps, options.rounds, device, launched=launched) for launched in (True, False)
    )
    rows = []
    for plain, loss, clock, own in zip(VARIANTS, losses, on_clock, on_gpu):
        row = {
            "case": name,
            "batch": case.batch,
            "blocks": options.blocks,
            "by_compiler": " ".join(plain) if len(plain) < len(KERNELS) else "all",
            "gpu_ms": f"{1e3 * own.best:.2f}",
            "median_gpu_ms": f"{1e3 * own.median:.2f}",
            "ms": f"{1e3 * clock.best:.2f}",
            "median_ms": f"{1e3 * clock.median:.2f}",
            "peak_gib": f"{clock.peak / 2**30:.2f}" if clock.peak else "",
            "loss": f"{loss:.6f}",
        }
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        rows.append({**row, **describe_machine(("torch", "triton"))})
    write_rows(options.out, rows)


if __name__ == "__main__":
    main(sys.argv[1:])

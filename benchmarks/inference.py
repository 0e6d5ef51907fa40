"""Forecasts: milliseconds per state and member, from an encoded context to decoded states.

    python -m benchmarks.inference [out=benchmarks/inference.csv] [cases=demo] [members=…] [steps=8]
                                   [batch_size=16] [sampling_steps=16] [rounds=3] [threads=…]
                                   [precision=fp32] [compiled=false]

One physical state is encoded, `members` members are rolled out for `steps` states, window by
window, and every state is decoded to physical units, as `lola-ds eval` does it. Generation
(encoding included) and decoding are timed separately, with a synchronisation after each; a first
rollout warms up. The fastest of `rounds` counts, as other processes can only slow it down; the
median of the totals is given, too.

Cases: `demo` and `demo_surrogate` (the demo's models, for a CPU); for a GPU `euler` and
`euler_surrogate` (vit_large on the latents of dcae_f32c64_large, 512² cells) and `pixel`
(vit_pixel, a surrogate without an autoencoder). Weights are random, which costs the same.
By default a GPU runs in bfloat16, compiled, and a CPU what `lola-ds eval` runs by default: float32,
not compiled.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.record import describe_machine, write_rows
from lola_ds.config import compose, parse_overrides
from lola_ds.emulate.emulator import Emulator
from lola_ds.emulate.options import SamplingOptions
from lola_ds.evaluate.timing import Stopwatch
from lola_ds.fields import Standardize
from lola_ds.models import make_autoencoder, make_denoiser, make_surrogate

FIELDS, LABELS = 5, 5  # of the Euler datasets


@dataclass(frozen=True)
class Case:
    """One emulator.

    Attributes:
        words: The Hydra overrides that choose the networks.
        side: The number of cells along each axis.
        members: The number of members of the ensemble.
    """

    words: tuple[str, ...]
    side: int
    members: int


LARGE = "ae=dcae_f32c64_large"
CASES = {
    "demo": Case(("task=diffusion", "denoiser=vit_tiny", "ae=dcae_f8c16"), 64, 8),
    "demo_surrogate": Case(("task=surrogate", "surrogate=vit_tiny", "ae=dcae_f8c16"), 64, 1),
    "euler": Case(("task=diffusion", "denoiser=vit_large", LARGE), 512, 16),
    "euler_surrogate": Case(("task=surrogate", "surrogate=vit_large", LARGE), 512, 1),
    "pixel": Case(("task=surrogate", "surrogate=vit_pixel"), 512, 1),
}


def make_emulator(case: Case, device: torch.device, precision: str, compiled: bool) -> Emulator:
    """The emulator of a case, with random weights."""
    config = compose([*case.words, "run=-", "data=-"])
    group, make = {
        "diffusion": ("denoiser", make_denoiser),
        "surrogate": ("surrogate", make_surrogate),
    }[config["task"]]
    autoencoder, channels = None, FIELDS
    if any(word.startswith("ae=") for word in case.words):
        options = {key: value for key, value in config["ae"].items() if value is not None}
        channels = options["lat_channels"]
        autoencoder = make_autoencoder(pix_channels=FIELDS, spatial=2, periodic=True, **options)
    sizes = {"channels": channels, "spatial": 3, "label_features": LABELS, "periodic": False}
    model = make(**{**config[group], **sizes})
    standardize = Standardize([0.0] * FIELDS, [1.0] * FIELDS)
    how: dict[str, Any] = {"device": device, "precision": precision, "compiled": compiled}
    return Emulator(model, autoencoder, standardize, config["trajectory"], **how)


@torch.no_grad()
def forecast(
    emulator: Emulator, x0: torch.Tensor, label: torch.Tensor, batch: int, **options: Any
) -> tuple[float, float]:
    """Seconds that one forecast takes: generation and decoding."""
    clock, generation, decoding = Stopwatch(emulator.device), 0.0, 0.0
    windows: Iterator[torch.Tensor] = emulator.stream(
        x0[None], label[None], SamplingOptions(**options), batch=batch
    )
    while (z := next(windows, None)) is not None:
        generation += clock.lap()
        emulator.decode(z[0], batch, emulator.device)
        decoding += clock.lap()
    return generation, decoding


def measure(emulator: Emulator, side: int, rounds: int, **options: Any) -> dict[str, str]:
    """Milliseconds per state, and the peak of a GPU's memory."""
    x0, label = torch.randn(FIELDS, *[side] * emulator.spatial), torch.ones(LABELS)
    forecast(emulator, x0, label, **options)
    if emulator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = [forecast(emulator, x0, label, **options) for _ in range(rounds)]
    states = options["members"] * options["steps"]
    generation, decoding = min(found, key=sum)
    peak = torch.cuda.max_memory_allocated() / 2**30 if emulator.device.type == "cuda" else None
    return {
        "ms_per_state": f"{1e3 * (generation + decoding) / states:.4g}",
        "generation_ms": f"{1e3 * generation / states:.4g}",
        "decoding_ms": f"{1e3 * decoding / states:.4g}",
        "median_ms": f"{1e3 * statistics.median(map(sum, found)) / states:.4g}",
        "peak_gib": "" if peak is None else f"{peak:.2f}",
    }


@dataclass
class Options:
    """The keys of the benchmark."""

    out: str = "benchmarks/inference.csv"
    cases: list[str] | None = None
    members: int | None = None
    steps: int = 8
    batch_size: int = 16
    sampling_steps: int = 16
    rounds: int = 3
    threads: int | None = None
    precision: str | None = None
    compiled: bool | None = None


def main(words: Sequence[str]) -> None:
    """Runs the benchmark; see the module's docstring."""
    gpu = torch.cuda.is_available()
    options = parse_overrides(Options, words)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    device = torch.device("cuda" if gpu else "cpu")
    default = ["euler", "euler_surrogate", "pixel"] if gpu else ["demo", "demo_surrogate"]
    precision = options.precision or ("bf16" if gpu else "fp32")
    compiled = gpu if options.compiled is None else options.compiled
    rows = []
    for name in options.cases or default:
        if name not in CASES:
            raise ValueError(f"cases: '{name}' is unknown; known: {', '.join(CASES)}")
        how = {"precision": precision, "compiled": compiled}
        case, emulator = CASES[name], make_emulator(CASES[name], device, **how)
        shape = {"steps": options.steps, "batch": options.batch_size}
        shape["sampling_steps"] = options.sampling_steps
        shape["members"] = options.members or case.members if emulator.generative else 1
        shown = {"case": name, "side": case.side, **shape, **how}
        shown |= measure(emulator, case.side, options.rounds, **shape)
        rows.append({**shown, **describe_machine(("torch", "azula"))})
        print("  ".join(f"{key} {value}" for key, value in shown.items()), flush=True)
        write_rows(options.out, rows)


if __name__ == "__main__":
    main(sys.argv[1:])

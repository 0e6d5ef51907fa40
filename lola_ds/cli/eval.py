"""`lola-ds eval`: a trained model over a split of data -> tables, figures, animation."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lola_ds.cli.common import make_parser, parse_arguments, run_command
from lola_ds.config import DEVICES, parse_overrides, setting

HELP = """\
Evaluates a trained model on a split: tables, figures, animation.

An emulator (task surrogate or diffusion) is rolled out from known frames of each trajectory and
compared with the truth, with persistence (the last known state, repeated), with the climatology
(the mean of the training split, where the shards hold it) and with its own autoencoder's
reconstruction of the truth. An autoencoder is scored on its reconstructions.

Results in OUT are kept. The same command again computes what is missing after an interruption, and
further trajectories, starts and settings are added to the same table. Results of another model or
other data are refused.

keys:
  run=…              folder of `lola-ds convert` (model.safetensors, config.yaml) (required)
  data=…             SHARDS, physical fields in SHARDS/<physics>/<split> (required)
  out=…              folder of results (required)
  split=test         which split
  trajectories=all   all, a number (spread evenly over the split), or a list such as 0,3,7
  steps=8            states to emulate, trajectory.stride frames apart; for an autoencoder, frames
                     of each trajectory
  start=0            first known frame; of an emulator also several: 0,8,16
  device=auto        auto, cpu or cuda
  batch_size=16      members (of several trajectories) through the model, and states through the
                     autoencoder, at most at a time
  memory=4           GB for all but the program and the weights; batches become smaller to fit
  figures=true       whether to draw them
  precision=fp32     of an emulator's matrix products and convolutions: fp32, bf16 (for a GPU;
                     samples are about 1e-3 of their norm off) or auto (bf16 where the device has
                     it); results of another precision go to another folder
  compile=false      whether to compile an emulator and, on a GPU, to make the steps of the sampler
                     ab one CUDA graph; faster after compilation, so for long evaluations

keys of emulators (settings; several values between commas are evaluated one after the other):
  members=8          members of the ensemble (diffusion only; a surrogate has one answer)
  context=1          known states at the start
  overlap=1          states a window shares with the one before
  sampler=ab         ab, vab, eab, xeab, ddim, heun, ddpm, ito or pc
  sampling_steps=16  steps of the sampler
  seed=0             of the noise; each (trajectory, start, member) has its own
  guidance=none      METHOD:OPERATOR[:option=…], forecasts that agree with observations of the
                     truth: mmps or sda; subsample:every=8, downscale:factor=8 or stripe:width=2;
                     std=0.05 of the observations' noise, units=standardised or physical, and more
  guidance_scale=1   classifier-free guidance, for a model trained with denoiser.label_dropout: 0
                     ignores the label, above 1 stresses it

writes to OUT:
  metrics.parquet, metrics.csv, model.json, training.jsonl
  <setting>/: summary.json, spectra.csv, vrmse.png, vrmse_by_field.png, spectra.png,
  spread_skill.png, ranks.png, snapshots_<field>.png, slices_<field>.png (of 3-d fields),
  animation.gif, animation.mp4

examples:
  lola-ds eval run=weights/dm data=SHARDS out=results/dm members=8 steps=8
  lola-ds eval run=weights/sm data=SHARDS out=results/sm split=valid trajectories=4 start=10
  lola-ds eval run=weights/dm data=SHARDS out=results/dm sampler=ab,ddim sampling_steps=4,16,64
  lola-ds eval run=weights/dm data=SHARDS out=results/dm guidance=none,mmps:subsample:every=8
  lola-ds eval run=weights/dm data=SHARDS out=results/dm precision=bf16 compile=true members=64
  lola-ds eval run=weights/ae data=SHARDS out=results/ae
  accelerate launch --num_processes 8 --module lola_ds.cli.eval run=weights/dm data=SHARDS out=…
"""


@dataclass
class Options:
    """The keys of the command."""

    run: str = setting()
    data: str = setting()
    out: str = setting()
    split: str = "test"
    trajectories: str = "all"
    steps: list[int] = field(default_factory=lambda: [8])
    start: list[int] = field(default_factory=lambda: [0])
    device: str = setting("auto", choices=DEVICES)
    batch_size: int = setting(16, least=1)
    memory: float = 4.0
    figures: bool = True
    precision: str = "fp32"
    compile: bool = False
    members: list[int] = field(default_factory=lambda: [8])
    context: list[int] = field(default_factory=lambda: [1])
    overlap: list[int] = field(default_factory=lambda: [1])
    sampler: list[str] = field(default_factory=lambda: ["ab"])
    sampling_steps: list[int] = field(default_factory=lambda: [16])
    seed: list[int] = field(default_factory=lambda: [0])
    guidance: list[str] = field(default_factory=lambda: ["none"])
    guidance_scale: list[float] = field(default_factory=lambda: [1.0])


SETTINGS = (
    *("sampler", "sampling_steps", "members", "steps", "context", "overlap", "seed", "guidance"),
    "guidance_scale",
)
"""Keys that take several values, in the order in which these are gone through."""


def main(argv: Sequence[str]) -> None:
    """Runs the command with the words `argv`."""
    _, words = parse_arguments(make_parser("eval", HELP), argv)
    options = parse_overrides(Options, words)
    trajectories = _parse_trajectories(options.trajectories)
    settings = _parse_settings(options)
    if options.memory <= 0:
        raise ValueError(f"memory={options.memory} must be positive")

    from lola_ds.evaluate import Forecast, Resources
    from lola_ds.evaluate.from_weights import evaluate_weights

    out = Path(options.out)
    results = evaluate_weights(
        Path(options.run),
        Path(options.data),
        out,
        [Forecast(start=options.start, **setting) for setting in settings],
        options.split,
        trajectories,
        device=options.device,
        precision=options.precision,
        compiled=options.compile,
        resources=Resources(options.batch_size, options.memory),
        draw=options.figures,
    )
    for evaluation, files in results:
        print(f"{evaluation.summary['setting']}: {evaluation.text}")
        print(f"{len(files)} files in {out}", flush=True)


def _parse_settings(options: Options) -> list[dict[str, Any]]:
    """Every combination of the values of `SETTINGS`, as arguments of a `Forecast`."""
    values = {name: getattr(options, name) for name in SETTINGS}
    values["guidance"] = [_parse_guidance(text) for text in options.guidance]
    return [dict(zip(SETTINGS, chosen)) for chosen in itertools.product(*values.values())]


def _parse_guidance(text: str) -> Any:
    """`none`, or `mmps:subsample:every=8:std=0.1` -> a `Guidance`."""
    if text == "none":
        return None
    from lola_ds.emulate.guidance import make_guidance

    method, *words = text.split(":")
    options: dict[str, Any] = {}
    if words and "=" not in words[0]:
        options["operator"] = words.pop(0)
    pairs = [word.partition("=") for word in words]
    options |= {key: _number(value) for key, _, value in pairs}
    return make_guidance(method=method, **options)


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _parse_trajectories(text: str) -> int | list[int] | None:
    """`all` -> None, `8` -> 8, `0,3` or `5,` -> a list."""
    if text == "all":
        return None
    try:
        numbers = [int(word) for word in text.split(",") if word]
    except ValueError:
        raise ValueError(
            f"trajectories={text}: expected all, a number, or numbers between commas"
        ) from None
    return numbers if "," in text else numbers[0]


if __name__ == "__main__":
    run_command(main, sys.argv[1:])

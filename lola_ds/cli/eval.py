"""`lola-ds eval`: a trained model over a split of data -> tables, figures, animation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .common import make_parser, parse_arguments, parse_pairs

HELP = """\
Evaluates a trained model on a split: tables, figures, an animation, a short table here.

An emulator (task surrogate or diffusion) is rolled out from the first frames of each trajectory and
compared with the truth, with persistence (the last known state, repeated) and with its own
autoencoder's reconstruction of the truth. An autoencoder is scored on its reconstructions.

keys:
  run=…              folder of `lola-ds convert` (model.safetensors, config.yaml) (required)
  data=…             SHARDS, physical fields in SHARDS/<physics>/<split> (required)
  out=…              folder of results (required)
  split=test         which split
  trajectories=all   all, a number (spread evenly over the split), or a list such as 0,3,7
  steps=8            states to emulate, trajectory.stride frames apart; for an autoencoder, frames
                     of each trajectory
  start=0            first known frame
  device=auto        auto, cpu or cuda

keys of emulators:
  members=8          members of the ensemble (diffusion only; a surrogate has one answer)
  context=1          known states at the start
  overlap=1          states a window shares with the one before
  sampler=ab         ab, eab, ddim, ddpm or pc
  sampling_steps=16  steps of the sampler
  seed=0             of the noise; each (trajectory, member) has its own

writes to OUT:
  metrics.csv, spectra.csv, summary.json
  vrmse.png, vrmse_by_field.png, spectra.png, spread_skill.png, snapshots_<field>.png
  animation.gif, animation.mp4

examples:
  lola-ds eval run=weights/dm data=SHARDS out=results/dm members=8 steps=8
  lola-ds eval run=weights/sm data=SHARDS out=results/sm split=valid trajectories=4 start=10
  lola-ds eval run=weights/ae data=SHARDS out=results/ae
"""

_DEFAULTS: dict[str, object] = {
    "run": None,
    "data": None,
    "out": None,
    "split": "test",
    "trajectories": "all",
    "steps": 8,
    "start": 0,
    "device": "auto",
    "members": 8,
    "context": 1,
    "overlap": 1,
    "sampler": "ab",
    "sampling_steps": 16,
    "seed": 0,
}


def main(argv: Sequence[str]) -> None:
    """Runs the command with the words `argv`."""
    _, words = parse_arguments(make_parser("eval", HELP), argv)
    keys = parse_pairs(words, _DEFAULTS, required=("run", "data", "out"))

    import torch

    from ..build import load_emulator, load_model, make_standardize
    from ..config import load_config
    from ..data import ShardDataset
    from ..emulate.emulator import Codec
    from ..evaluate import Forecast, evaluate, evaluate_autoencoder, spread_trajectories

    device = keys["device"]
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device} is unknown; choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: no GPU is visible here; choose device=cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"

    config = load_config(Path(keys["run"]) / "config.yaml")
    dataset = ShardDataset(
        _folders(Path(keys["data"]), config["dataset"]["physics"], keys["split"])
    )
    chosen = _parse_trajectories(keys["trajectories"])
    if isinstance(chosen, int):
        chosen = spread_trajectories(dataset, chosen)
    if config["task"] == "autoencoder":
        codec = Codec(load_model(keys["run"]), make_standardize(config["dataset"]), device)
        evaluation, files = evaluate_autoencoder(
            codec, dataset, keys["out"], keys["steps"], keys["start"], chosen
        )
    else:
        names = "steps members start context overlap sampler sampling_steps seed".split()
        forecast = Forecast(**{name: keys[name] for name in names})
        emulator = load_emulator(keys["run"], device)
        evaluation, files = evaluate(emulator, dataset, keys["out"], forecast, chosen)
    print(evaluation.text)
    print(f"{len(files)} files in {keys['out']}")


def _folders(data: Path, physics: Sequence[str], split: str) -> list[Path]:
    """The folders of a split; a missing one is refused with the splits that exist."""
    folders = [data / name / split for name in physics]
    for folder in folders:
        if not folder.is_dir():
            found = sorted(path.parent.name for path in folder.parent.glob("*/index.npz"))
            known = f"splits there: {', '.join(found)}" if found else "no shards there"
            raise FileNotFoundError(
                f"{folder} does not exist ({known}); data= is the out= of `lola-ds shard`"
            )
    return folders


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

"""`make demo`: the whole method on freshly solved Euler flows, on a machine with two cores.

Synthesize -> shard -> autoencoder (2 ranks, ZeRO-1) -> encode -> surrogate and diffusion model
(2 ranks, ZeRO-2) -> convert -> evaluate -> report. Each step is one command, shown before it runs,
so that any of them can be repeated by hand. Run again after an interruption, the demo goes on where
it was: every command of the project does.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path("demo")
RANKS = 2
WELL, SHARDS, LATENTS = ROOT / "well", ROOT / "shards", ROOT / "latents"
EMULATORS = ("surrogate", "diffusion")
ASSIMILATION = ROOT / "assimilation"
PAGE, TITLE = ROOT / "report.html", "Surrogate and diffusion on Euler flows"


def main() -> None:
    """Runs every step; stops at the first that fails."""
    start = time.monotonic()
    dataset = "dataset=euler_periodic"
    sizes = "resolution=64 trajectories=32 steps=33 seed=0".split()
    step("Solve the Euler equations", lola("synthesize", dataset, f"out={WELL}", *sizes))
    step("Repack as shards", lola("shard", dataset, f"source={WELL}", f"out={SHARDS}"))
    step("Train the autoencoder", train("autoencoder", SHARDS))
    convert("autoencoder")
    weights = f"run={ROOT}/weights/autoencoder"
    step("Encode", lola("encode", weights, f"data={SHARDS}", f"out={LATENTS}", "repeat=4"))
    for task in EMULATORS:
        autoencoder = f"ae_run={ROOT}/weights/autoencoder"
        step(f"Train the {task} model", train(task, LATENTS, autoencoder))
        convert(task)
    evaluate("autoencoder")
    for task, members in zip(EMULATORS, (1, 8)):
        evaluate(task, f"members={members}", "steps=8")
    assimilate()
    step("Report", lola("report", f"{ROOT}/results", f"out={PAGE}", f"title={TITLE}"))
    summarize(time.monotonic() - start)


def train(task: str, data: Path, *words: str) -> list[str]:
    """The training command: the deepspeed launcher, as on a node with GPUs."""
    launcher = [bin_path("deepspeed"), "--num_gpus", str(RANKS), "--module", "lola_ds.cli.train"]
    return [
        *launcher,
        f"experiment=demo_{task}",
        f"data={data}",
        f"run={ROOT}/runs/{task}",
        *words,
    ]


def convert(task: str) -> None:
    """Plain weights of a finished run."""
    run, out = f"{ROOT}/runs/{task}", f"{ROOT}/weights/{task}"
    step(f"Convert the {task}", lola("convert", run, out))


def evaluate(task: str, *words: str) -> None:
    """Tables and figures of one model over the test split."""
    run, out = f"run={ROOT}/weights/{task}", f"out={ROOT}/results/{task}"
    command = lola("eval", run, f"data={SHARDS}", "split=test", out, *words)
    step(f"Evaluate the {task}", command)


def assimilate() -> None:
    """The diffusion model guided by observations of every 8th cell, on two trajectories."""
    run, data = f"run={ROOT}/weights/diffusion", f"data={SHARDS}"
    words = "members=2 steps=8 trajectories=2 figures=false".split()
    guidance = "guidance=none,mmps:subsample:every=8"
    command = lola("eval", run, data, f"out={ASSIMILATION}", *words, guidance)
    step("Guide the diffusion model by observations", command)


def lola(*words: str) -> list[str]:
    """A `lola-ds` command."""
    return [bin_path("lola-ds"), *words]


def bin_path(name: str) -> str:
    """A console command of this environment."""
    return str(Path(sys.executable).with_name(name))


def step(title: str, command: Sequence[str]) -> None:
    """Shows and runs one command; its failure ends the demo with its exit status."""
    shown = shlex.join([Path(command[0]).name, *command[1:]])
    print(f"\n=== {title}\n$ {shown}", flush=True)
    start = time.monotonic()
    threads = {"OMP_NUM_THREADS": "1"} if "--module" in command else {}
    done = subprocess.run(command, env=os.environ | threads, check=False)
    if done.returncode:
        print(f"demo: '{shown}' failed with exit status {done.returncode}", file=sys.stderr)
        raise SystemExit(done.returncode)
    print(f"    {time.monotonic() - start:.0f} s", flush=True)


METHODS = {"emulator": "one member", "ensemble": "ensemble mean"}


def summarize(seconds: float) -> None:
    """A short table, and where the figures are."""
    results = ROOT / "results"
    read = {
        task: json.loads(next((results / task).glob("*/summary.json")).read_text())
        for task in ("autoencoder", *EMULATORS)
    }
    print(f"\nDone in {seconds / 60:.1f} minutes. On the test split, over the first 8 states:\n")
    print(f"{'':<50}{'mean':>8}{'worst lead':>12}")
    error = read["autoencoder"]["vrmse"]["autoencoder"]["mean"]
    print(f"{'autoencoder: VRMSE of the reconstruction':<50}{error:>8.3f}")
    ratio = read["surrogate"]["ratio_to_persistence"]["climatology"]
    name = "climatology: VRMSE / persistence's"
    print(f"{name:<50}{ratio['mean']:>8.3f}{ratio['worst']:>12.3f}")
    for task in EMULATORS:
        ratios = read[task]["ratio_to_persistence"]
        for method in [m for m in METHODS if m in ratios]:
            name, ratio = f"{task}, {METHODS[method]}: VRMSE / persistence's", ratios[method]
            print(f"{name:<50}{ratio['mean']:>8.3f}{ratio['worst']:>12.3f}")
    print("\nDiffusion, mean of 2 on 2 trajectories: VRMSE / persistence's, mean")
    for path in sorted(ASSIMILATION.glob("*/summary.json"), key=lambda path: len(path.parts[-2])):
        found = json.loads(path.read_text())
        name = "guided by every 8th cell" if "guidance" in found["settings"] else "on its own"
        print(f"{name:<50}{found['ratio_to_persistence']['ensemble']['mean']:>8.3f}")
    print(f"\nEverything on one page: {PAGE}")
    print(f"Tables, figures and animations: {results}/*/*/")


if __name__ == "__main__":
    main()

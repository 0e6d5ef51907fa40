"""`lola-ds convert` of large checkpoints: memory is bounded by the largest tensor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lola_ds.config import compose, save_config
from lola_ds.train.checkpoint.store import CheckpointStore
from lola_ds.train.checkpoint.tensor_file import TensorFile
from lola_ds.train.ema import Ema
from lola_ds.train.ema_profiles import PowerLaw
from lola_ds.train.zero.partitions import Partition

LAYERS = 8
MEASURE = """
import sys
from lola_ds.cli.convert import main

def peak():  # of this process; what `getrusage` gives includes the process that started it
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

for words in sys.argv[1:]:
    main(words.split(":"))
    print("peak", peak())
"""


def write_run(run: Path, size: int) -> Path:
    """A run of `LAYERS` weights of `size` values each, as one rank saves them."""
    module = nn.Module()
    module.model = nn.ParameterList(torch.full((size,), float(i)) for i in range(LAYERS))
    partitions = [
        Partition(name, tuple(p.shape), 0, p.numel(), p, 0) for name, p in module.named_parameters()
    ]
    ema = Ema(partitions, [PowerLaw(0.05), PowerLaw(0.1)])
    store = CheckpointStore(run / "checkpoints", asynchronous=False)
    state = {"step": 1, "updates": 1}
    store.save(1, module, partitions, torch.optim.SGD(module.parameters()), ema, state)
    save_config(compose(["task=autoencoder", "run=r", "data=d"]), run / "config.yaml")
    return run


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
@pytest.mark.parametrize("millions", [2, pytest.param(12, marks=pytest.mark.slow)])
@pytest.mark.parametrize("which", ["none", "0.08"])
def test_memory_is_bounded_by_a_tensor(which: str, millions: int, tmp_path: Path) -> None:
    small, large = (
        write_run(tmp_path / "small", 10),
        write_run(tmp_path / "large", millions * 10**6),
    )
    words = [f"{run}:{run}_out:--ema:{which}:--verify" for run in (small, large)]
    command = [sys.executable, "-c", MEASURE, *words]
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc gives back what is freed
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, peak = (
        1024 * int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak")
    )
    tensor = 4 * millions * 10**6
    print(f"{which}: {peak / 2**20:.0f} MiB, {(peak - before) / tensor:.1f} tensors above start")
    assert peak - before < 4 * tensor + 2**24
    assert millions < 12 or peak <= 1.3 * LAYERS * tensor + 300e6
    assert len(TensorFile(tmp_path / "large_out" / "model.safetensors").specs) == LAYERS

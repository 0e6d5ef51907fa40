"""One of several processes that evaluate waves: python eval_worker.py SHARDS OUT."""

from __future__ import annotations

import sys

from wave_emulator import WaveEmulator

from lola_ds.data import ShardDataset
from lola_ds.evaluate import Forecast, evaluate, join_processes

processes, device = join_processes("cpu")
emulator = WaveEmulator(0.3)
dataset = ShardDataset(sys.argv[1])
found = evaluate(
    emulator,
    dataset,
    sys.argv[2],
    Forecast(steps=3, members=2, start=(0, 2)),
    train=dataset,
    processes=processes,
    draw=False,
    progress=False,
)
print(f"process {processes.index}: {len(emulator.generated)} forecasts, table: {found is not None}")
processes.leave()

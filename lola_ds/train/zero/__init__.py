"""All that touches DeepSpeed: its process group, engine, optimizers and private names.

The training loop, the checkpoints and the commands use these names only.
"""

from lola_ds.train.zero.engine import Engine
from lola_ds.train.zero.loss_scale import LossScale
from lola_ds.train.zero.nvme_offload import Drive, drive_bytes, open_drive
from lola_ds.train.zero.partitions import Partition
from lola_ds.train.zero.process_group import join_process_group

__all__ = [
    "Drive",
    "Engine",
    "LossScale",
    "Partition",
    "drive_bytes",
    "join_process_group",
    "open_drive",
]

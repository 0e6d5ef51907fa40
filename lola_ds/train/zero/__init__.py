"""All that touches DeepSpeed: its process group, engine, optimizers and private names.

The training loop, the checkpoints and the commands use these names only.
"""

from lola_ds.train.zero.engine import Engine
from lola_ds.train.zero.loss_scale import LossScale
from lola_ds.train.zero.nvme_offload import NvmeStore, nvme_bytes, open_nvme_store
from lola_ds.train.zero.partitions import Partition
from lola_ds.train.zero.process_group import join_process_group

__all__ = [
    "Engine",
    "LossScale",
    "NvmeStore",
    "Partition",
    "join_process_group",
    "nvme_bytes",
    "open_nvme_store",
]

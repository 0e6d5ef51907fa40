"""All that touches DeepSpeed: its process group, engine, optimizers and private names."""

from lola_ds.train.zero.engine import make_engine
from lola_ds.train.zero.process_group import join_process_group

__all__ = ["join_process_group", "make_engine"]

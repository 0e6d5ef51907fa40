"""Shards: writing, indexing, verifying, and reading them as batches of windows."""

from lola_ds.data.batch import Batch
from lola_ds.data.format import ShardError
from lola_ds.data.index import Index, open_index
from lola_ds.data.loader import Loader, build_loader, evaluation_batches
from lola_ds.data.publishing import publish
from lola_ds.data.repair import repair_index
from lola_ds.data.sampler import ElasticSampler
from lola_ds.data.shuffle import make_order
from lola_ds.data.streaming import stream_windows
from lola_ds.data.verify import verify_split
from lola_ds.data.windows import ShardDataset
from lola_ds.data.writer import ShardWriter

__all__ = [
    "Batch",
    "ElasticSampler",
    "Index",
    "Loader",
    "ShardDataset",
    "ShardError",
    "ShardWriter",
    "build_loader",
    "evaluation_batches",
    "make_order",
    "open_index",
    "publish",
    "repair_index",
    "stream_windows",
    "verify_split",
]

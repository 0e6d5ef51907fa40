"""Shards: writing, indexing, verifying, and reading them as batches of windows."""

from .batch import Batch
from .format import ShardError
from .index import Index, open_index
from .loader import Loader, build_loader, evaluation_batches
from .orders import make_order
from .publishing import publish
from .repair import repair_index
from .sampler import ElasticSampler
from .streaming import stream_windows
from .verify import verify_split
from .windows import ShardDataset
from .writer import ShardWriter

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

"""A small data set and a small model, trained by the real commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import make_shards

PHYSICS = "euler_multi_quadrants_periodicBC"
FIELDS = ["energy", "density", "pressure", "momentum_x", "momentum_y"]


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`SHARDS/<physics>/{train,valid,test}`: smooth positive random fields, 16 × 16."""
    root = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("valid", 2), ("test", 2)):
        grid = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        phases = rng.uniform(0, 2 * np.pi, (count, 9, 5, 1, 1))
        waves = np.sin(grid[:, None] + phases) * np.cos(grid[None, :] - phases)
        make_shards(root / PHYSICS / split, 1.5 + 0.5 * waves, ranks=(0, 0, 0, 1))
    return root

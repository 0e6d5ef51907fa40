"""The published runs beside the project: configurations, weights, expected inputs and outputs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "lola_runs"

needs_runs = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"the published runs are missing: no folder {FOLDER}"
)


def load_run(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """The configuration, the state dictionary, and the inputs and outputs of a run."""
    folder = FOLDER / name
    config = yaml.safe_load((folder / "config.yaml").read_text())
    state = torch.load(folder / "state.pth", weights_only=True)
    with np.load(folder / "io.npz") as arrays:
        io = {key: torch.from_numpy(array) for key, array in arrays.items()}
    return config, state, io


def assert_relative(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Asserts that the largest error is small beside the largest value."""
    assert actual.shape == expected.shape
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"relative error {error:.1e}"

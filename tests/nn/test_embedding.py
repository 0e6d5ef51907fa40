"""Embeddings against loops in float64, and in float32 whatever the autocast."""

import math

import pytest
import torch

from lola_ds.nn.embedding import PositionalEmbedding, ScalarEmbedding, SineEncoding, VectorEmbedding


@pytest.mark.parametrize("features", [4, 32])
def test_sine_encoding_follows_its_formula(features: int) -> None:
    x = torch.tensor([[-70.0, 0.3], [2.0, 69.0]])
    y = SineEncoding(features)(x)
    half = features // 2
    for i in range(2):
        for j in range(2):
            for k in range(half):
                angle = float(x[i, j]) * 1000 ** (-k / (half - 1))
                assert math.isclose(y[i, j, k], math.sin(angle), abs_tol=5e-6)
                assert math.isclose(y[i, j, half + k], math.cos(angle), abs_tol=5e-6)


@pytest.mark.parametrize("features", [2, 5])
def test_sine_encoding_refuses(features: int) -> None:
    with pytest.raises(ValueError, match="even number"):
        SineEncoding(features)


def test_positional_embedding_concatenates_axes() -> None:
    embedding = PositionalEmbedding(2, 8)
    p = torch.tensor([[3.0, 5.0], [0.0, 7.0]])
    encoded = torch.cat([embedding[0](p[:, 0]), embedding[0](p[:, 1])], dim=-1)
    torch.testing.assert_close(embedding(p), embedding[2](encoded))


@pytest.mark.parametrize(
    ("embedding", "shape"),
    [
        (ScalarEmbedding(8), (3,)),
        (VectorEmbedding(5, 8), (3, 5)),
        (PositionalEmbedding(2, 8), (3, 2)),
    ],
)
def test_embeddings_ignore_autocast(embedding: torch.nn.Module, shape: tuple) -> None:
    x = torch.randn(shape)
    y = embedding(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embedding(x), y)
